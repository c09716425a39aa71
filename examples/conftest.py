"""The fixtures of the tests here: a conftest.py at the root of a project's tests has this line."""

pytest_plugins = ["msgservice.testing"]
