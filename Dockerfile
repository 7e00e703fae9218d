# The commands of retfound in a container, as a user without rights:
#
#     docker build --tag retfound .                            # for CPUs
#     docker build --tag retfound --build-arg DEVICE=cuda .    # for NVIDIA GPUs
#     docker run --rm --volume "$PWD:/work" --user "$(id -u):$(id -g)" retfound finetune --data my-images ...
#     docker run --rm --publish 127.0.0.1:7860:7860 --volume "$PWD:/work" retfound app my-classifier --host 0.0.0.0
#
# With a GPU add `--gpus all --ipc host`: loader processes hand images over in shared memory.
ARG PYTHON=3.12
FROM python:${PYTHON}-slim

ARG DEVICE=cpu
ARG EXTRAS=app,dicom
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

# A layer of its own, which stays while the package changes. The wheels of PyPI bring CUDA, those of the index do not.
# No versions: the next step holds both to the ranges of setup.cfg.
# hadolint ignore=DL3013
RUN case "$DEVICE" in \
        cpu) pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu ;; \
        cuda) pip install torch torchvision ;; \
        *) echo "DEVICE=$DEVICE is not accepted; accepted: cpu, cuda" >&2; exit 2 ;; \
    esac

COPY . /src
RUN pip install "/src[$EXTRAS]" && rm -r /src

# Caches and settings of libraries lie in the home folder, which any --user may write.
RUN useradd --uid 1000 --create-home retfound && chmod 1777 /home/retfound
ENV HOME=/home/retfound
USER 1000
WORKDIR /work
ENTRYPOINT ["retfound"]
CMD ["--help"]
