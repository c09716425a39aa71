"""The protocol over Perspective Broker: frames as calls, beside the calls of plain PB programs."""
