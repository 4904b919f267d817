# syntax=docker/dockerfile:1
# Two stages: what is locked and our own wheel go into one virtual environment, which alone is taken along.
# The Python in both stages is the same image, so that the interpreter's path stays what the environment knows.
ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm
ARG UV_IMAGE=ghcr.io/astral-sh/uv:0.13.8

FROM ${UV_IMAGE} AS uv

FROM ${PYTHON_IMAGE} AS builder
COPY --from=uv /uv /usr/local/bin/uv
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=0 UV_NO_CACHE=1
WORKDIR /build
# First what changes seldom: a commit that leaves the lock alone finds this layer as it is.
COPY requirements.lock ./
RUN uv venv /opt/ollama-router \
 && uv pip install --python /opt/ollama-router/bin/python --require-hashes -r requirements.lock
COPY requirements-dev.lock pyproject.toml README.md LICENSE ./
COPY router ./router
RUN uv build --wheel --build-constraint requirements-dev.lock --require-hashes --out-dir /dist \
 && uv pip install --python /opt/ollama-router/bin/python --no-deps /dist/*.whl

FROM ${PYTHON_IMAGE} AS runtime
ARG VERSION=0.0.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="ollama-router" \
      org.opencontainers.image.description="One base_url in front of a pool of Ollama machines" \
      org.opencontainers.image.source="https://github.com/ollama-router/ollama-router" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=builder /opt/ollama-router /opt/ollama-router
ENV PATH=/opt/ollama-router/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
# A number, since Kubernetes' runAsNonRoot cannot look names up. Nothing is written: run it with a read-only root.
USER 65532:65532
EXPOSE 11435 9464
# As a list: the router itself is process 1 and gets SIGTERM. No HEALTHCHECK: orchestrators ask /livez and /readyz.
ENTRYPOINT ["ollama-router"]
CMD ["serve"]
