"""OpenVINO, from the ONNX directory that ``fxprune export --optimize none`` wrote, with its key-value cache."""

import sys

import decoding
import openvino


def main() -> None:
    job = decoding.read_job()
    compiled = openvino.compile_model(
        f"{job['onnx']}/model.onnx", "CPU", {"INFERENCE_PRECISION_HINT": job["precision"], "INFERENCE_NUM_THREADS": 1}
    )
    decoding.answer(job, decoding.Graph(compiled), openvino.__version__.split("-")[0])


if __name__ == "__main__":
    sys.exit(main())
