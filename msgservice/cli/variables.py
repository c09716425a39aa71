"""Names of the environment's variables that hold the secret of a login.

Never an argument does: others on the machine see those.
"""

PASSWORD = "MSGSERVICE_PASSWORD"  # noqa: S105  # its name
TOKEN = "MSGSERVICE_TOKEN"  # noqa: S105  # its name
