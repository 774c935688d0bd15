"""What a request is refused with: an HTTP status, and an error as OpenAI's clients read it."""


class ApiError(Exception):
    """An error that is answered.

    Args:
        status: of HTTP.
        message: what was received, what was expected, what to do.
        param: the field of the request that is wrong.
        code: a word for programs.
        headers: more of the answer's.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = headers or {}

    @property
    def body(self) -> dict:
        return error_body(self.status, self.message, self.param, self.code)


TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable",
    504: "timeout_error",
}


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict:
    """The body of an error, in OpenAI's shape."""
    kind = TYPES.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


class Refused(ValueError):
    """A request that a model's process refuses, and which of its fields is wrong."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None, status: int = 400):
        super().__init__(message)
        self.param, self.code, self.status = param, code, status
