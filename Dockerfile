# The service on its own: docker build -t gems . && docker run -p 127.0.0.1:8000:8000 -v gems:/data gems --open
# Keys:  docker run ... -v ./keys.toml:/run/secrets/keys.toml:ro -e GEMS_KEYS=/run/secrets/keys.toml gems
FROM python:3.12-slim

# The CPU build of torch; for a GPU, use the index of your CUDA version instead.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

# .dockerignore leaves out what the package does not need; make release-check builds a wheel from the same files.
WORKDIR /src
COPY . .
RUN pip install --no-cache-dir -c constraints.txt --extra-index-url ${TORCH_INDEX} ".[serve,openai,postgres,s3]" \
    && useradd --create-home --uid 10001 gems && mkdir /data && chown gems /data

USER gems
WORKDIR /data
ENV GEMS_HOME=/data
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
# After SIGTERM, runs at work get --grace seconds; what has not finished continues at the next start.
STOPSIGNAL SIGTERM
ENTRYPOINT ["gems", "serve", "--host", "0.0.0.0", "--log-format", "json"]
