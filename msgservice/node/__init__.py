"""The node: ingress, dispatch, directory, tracker, and the page that assembles them."""
