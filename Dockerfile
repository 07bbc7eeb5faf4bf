# docker build --target cpu -t embedlane .          or --target gpu
# BASE needs python3 (3.11 or newer) with venv: any Debian or Ubuntu image that has them will do.
ARG BASE=python:3.12-slim-bookworm

FROM ${BASE} AS python
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PATH=/opt/venv/bin:$PATH

# The environment, with every file's hash checked. PIP_* are pip's own variables, for a mirror or another certificate;
# they stay in this stage.
FROM python AS packages
ARG PIP_INDEX_URL PIP_CERT PIP_DEFAULT_TIMEOUT=60
WORKDIR /build
COPY requirements requirements
RUN python3 -m venv /opt/venv

FROM packages AS cpu-packages
RUN /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes --only-binary :all: \
        -r requirements/cpu.lock

FROM packages AS gpu-packages
RUN /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes --only-binary :all: \
        -r requirements/gpu.lock

# What both targets have besides their packages.
FROM python AS server
# The run directory has the owner and mode that a new volume on it takes over, and the server insists on.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin embedlane \
    && install -d -o embedlane -g embedlane -m 0700 /data /run/embedlane
WORKDIR /opt/embedlane
COPY . .
ENV EMBEDLANE_HOST=0.0.0.0 EMBEDLANE_DATA_DIR=/data HF_HOME=/data/huggingface
USER embedlane
VOLUME /data
EXPOSE 8000
# An embedding went through within the last second. The first start makes the model's bundle.
HEALTHCHECK --interval=10s --timeout=5s --start-period=5m --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ.get('EMBEDLANE_PORT', '8000') + '/ready', timeout=4)"]
CMD ["python", "-m", "tools.serve"]

FROM server AS gpu
COPY --from=gpu-packages /opt/venv /opt/venv
# CUDA's libraries are among the packages; the driver comes from NVIDIA's container toolkit.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

# The last stage is what a build without --target makes.
FROM server AS cpu
COPY --from=cpu-packages /opt/venv /opt/venv
