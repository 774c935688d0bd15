"""The server on Ray Serve: replicas on any number of machines, more of them as requests queue up."""

import asyncio
import contextlib
import os
from collections.abc import Sequence

try:
    from ray import serve
except ImportError:
    raise ImportError("Ray Serve is not installed. Install it with: pip install 'kerasllm[ray]'") from None

from kerasllm.serving.app import Settings, make_app
from kerasllm.serving.supervisor import ModelProcess, Models

ONGOING = 16  # requests of a replica that it is made for


def make_ray_app(
    directories: Sequence[str | os.PathLike],
    replicas: tuple[int, int] = (1, 1),
    settings: Settings | None = None,
    num_cpus: float = 1,
    **options,
):
    """An application for `serve.run`.

    Args:
        directories: of saved models, which every machine must be able to read.
        replicas: how many servers at the least and at the most; their number follows the requests of each.
        settings: of each server; with the key that `KERASLLM_API_KEY` has, when left out.
        num_cpus: of a replica.
        options: `slots`, `length`, `cache_dtype` and `max_waiting` of each model, see `ModelProcess`.

    Example:
    ```python
    serve.run(make_ray_app(["saved_models/quickstart"], replicas=(2, 4)))
    ```
    """
    directories = [os.path.abspath(directory) for directory in directories]
    settings = settings or Settings(os.environ.get("KERASLLM_API_KEY") or None)

    def build():
        models = Models([ModelProcess(directory, **options) for directory in directories])
        return _once_loaded(make_app(models, settings), models)

    @serve.deployment(
        autoscaling_config={
            "min_replicas": replicas[0],
            "max_replicas": replicas[1],
            "target_ongoing_requests": ONGOING,
        },
        max_ongoing_requests=16 * ONGOING,
        ray_actor_options={"num_cpus": num_cpus},
    )
    @serve.ingress(build)
    class Server:
        pass

    return Server.bind()


def _once_loaded(app, models: Models):
    """The application, which has started only when its models are there: a replica gets no request before."""
    begin = app.router.lifespan_context

    @contextlib.asynccontextmanager
    async def lifespan(app):
        async with begin(app) as state:
            while not all(process.ready for process in models.processes.values()):
                for process in models.processes.values():
                    if process.failed:
                        raise RuntimeError(f"The model {process.name!r} could not be loaded: {process.failed}")
                await asyncio.sleep(0.1)
            yield state

    app.router.lifespan_context = lifespan
    return app
