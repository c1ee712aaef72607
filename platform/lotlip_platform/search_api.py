"""The HTTP interface of a service: what may be asked, and how mistakes are answered."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from lotlip.errors import LotlipError
from lotlip_platform.http_limits import BodyLimit, Counted

if TYPE_CHECKING:
    from lotlip_platform.search_service import SearchService

_PAGE = "search.html"
_PAGE_MAY = (
    "default-src 'none'; img-src 'self'; connect-src 'self'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
_IMAGE_HEADERS = {"Cache-Control": "max-age=86400", "X-Content-Type-Options": "nosniff"}


class RequestError(LotlipError):
    """What was asked can't be answered: the asker's to mend."""


class NotFoundError(LotlipError):
    """What was asked for by its name isn't there."""


_STATUS = {NotFoundError: 404, RequestError: 422}


class EmbedRequest(BaseModel):
    """Texts, images in base64, or both."""

    model_config = ConfigDict(extra="forbid", strict=True)
    texts: list[str] = Field(default_factory=list)
    images: list[str] = Field(default_factory=list)


class SearchRequest(BaseModel):
    """A description of what images should show."""

    model_config = ConfigDict(extra="forbid", strict=True)
    text: str
    hits: int = 12


def build_app(service: SearchService) -> Any:
    """The application of a replica (ASGI)."""
    # Its own pages of documentation load scripts from elsewhere.
    app = FastAPI(title="LoTLIP search", docs_url=None, redoc_url=None)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(LotlipError, _refused)
    page = (resources.files("lotlip_platform") / _PAGE).read_text()

    @app.get("/")
    async def search_page() -> Response:
        return HTMLResponse(page, headers={"Content-Security-Policy": _PAGE_MAY})

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/ready")
    async def ready() -> dict[str, str]:
        return {"status": "ready", "version": service.served.version}

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(await service.exposition(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/model")
    async def model() -> dict[str, Any]:
        return service.about()

    @app.post("/v1/embed")
    async def embed(request: EmbedRequest) -> dict[str, Any]:
        return await service.embed(request.texts, request.images)

    @app.post("/v1/search")
    async def search(request: SearchRequest) -> dict[str, Any]:
        return await service.search(request.text, request.hits)

    @app.get("/v1/images/{number}")
    async def image(number: int, of: str = "") -> Response:
        sample = await service.image(number, of)
        kind = "jpeg" if sample.image_suffix == "jpg" else sample.image_suffix
        return Response(sample.image, media_type=f"image/{kind}", headers=_IMAGE_HEADERS)

    trusted = TrustedHostMiddleware(app, service.config.hosts, www_redirect=False)
    limited = BodyLimit(trusted, max_bytes=int(service.config.max_body_mb * 1e6))
    return Counted(limited, tell=service.metrics.answered)


async def _malformed(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        reason = f"the body is not JSON: {first['ctx']['error']}"
    else:
        where = ".".join(str(part) for part in first["loc"][1:]) or "the body"
        reason = f"{where}: {first['msg']}"
    return JSONResponse({"error": reason}, 422)


async def _http_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": str(error.detail)}, error.status_code)


async def _refused(_: Request, error: Exception) -> JSONResponse:
    # Any other is of the data set or its store, which the asker can't mend.
    return JSONResponse({"error": printable(str(error))}, _STATUS.get(type(error), 502))


def printable(text: str) -> str:
    """The text without halves of surrogate pairs, which broken captions have and JSON can't."""
    return text.encode(errors="replace").decode()
