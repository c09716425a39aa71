"""The callback protocol, sans-IO; the other faces of it share this one."""
