"""Names the service to twistd. Strings only: no service and no reactor is imported here."""

from twisted.application.service import ServiceMaker

msgservice = ServiceMaker(
    "msgservice",
    "msgservice.tap",
    "A messaging node: nothing accepted is lost.",
    "msgservice",
)
