"""Names the service to twistd. Strings only: importing this must not import the service or a reactor."""

from twisted.application.service import ServiceMaker

msgservice = ServiceMaker(
    "msgservice",
    "msgservice.tap",
    "A messaging node: nothing accepted is lost.",
    "msgservice",
)
