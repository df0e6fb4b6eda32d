# docker build --build-arg TORCH=cpu -t fxprune .         TORCH: the build of torch, as download.pytorch.org names them
# docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/data" fxprune apply demo --pass taylor --ratio 0.25 --out OUT
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
ARG TORCH=cpu
# The history of git stays outside (.dockerignore), so that the version has to be said.
ARG VERSION=0.1.0.dev0
RUN python -m venv /opt/fxprune
ENV PATH=/opt/fxprune/bin:$PATH
WORKDIR /src
# torch in a layer of its own: it is most of the image, and changes least.
COPY constraints.txt ./
RUN pip install --no-cache-dir -c constraints.txt --index-url "https://download.pytorch.org/whl/${TORCH}" torch
COPY . .
RUN SETUPTOOLS_SCM_PRETEND_VERSION_FOR_FXPRUNE="${VERSION}" \
    pip install --no-cache-dir -c constraints.txt '.[all]'

# A build of torch brings CUDA's libraries with it; the driver comes from the host, with `docker run --gpus all`.
FROM python:${PYTHON}-slim
COPY --from=build /opt/fxprune /opt/fxprune
ENV PATH=/opt/fxprune/bin:$PATH HF_HOME=/data/.cache/huggingface
RUN useradd --create-home fxprune && install -d -o fxprune /data
USER fxprune
WORKDIR /data
ENTRYPOINT ["fxprune"]
CMD ["--help"]
