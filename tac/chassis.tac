"""An echo server of components on port 1601: `twistd -ny tac/chassis.tac`."""

from twisted.application.service import Application
from twisted.internet import reactor

from examples.chassis_echo import Echo
from msgservice.faces.chassis import SimpleServer
from msgservice.faces.chassis.service import ChassisService

application = Application("chassis")
server = SimpleServer(protocol=Echo, endpoint="tcp:1601:interface=127.0.0.1")
ChassisService(server, reactor).setServiceParent(application)
