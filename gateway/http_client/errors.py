"""Exceptions of the HTTP client."""


class ConnectError(Exception):
    """No connection could be opened."""


class ConnectionBroken(Exception):
    """The connection broke off, or the data was not valid HTTP."""


class ResponseTimeout(ConnectionBroken):
    """The server was silent for too long."""
