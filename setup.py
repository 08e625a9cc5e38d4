import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = next(
    line.split('"')[1]
    for line in (here / "rdn_fast/__init__.py").read_text().splitlines()
    if line.startswith("__version__")
)


def long_description() -> str:
    """README without its pictures and its links into the repository, which would lead nowhere on an index page."""
    text = (here / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"^!\[.*\n\n", "", text, flags=re.MULTILINE)
    return re.sub(r"\[([^\]]+)\]\((?!https?://)[^)]*\)", r"\1", text)


triton = (
    "triton>=3.6,<3.10; platform_system == 'Linux'"  # kernels are compiled and interpreted with it, without a card too
)

setup(
    name="rdn-fast",
    version=version,
    description="Train, evaluate and run RDN super-resolution (Residual Dense Network), fast, on Ascend, CUDA and CPU",
    long_description=long_description(),
    long_description_content_type="text/markdown",
    license="MIT AND CC-BY-SA-4.0",  # the latter: the shipped weights
    classifiers=[
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",  # the one that the tests run on
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Processing",
        "Typing :: Typed",
    ],
    python_requires=">=3.10",
    packages=find_packages(include=["rdn_fast", "rdn_fast.*"]),
    package_data={
        "rdn_fast": ["py.typed", "tested.md"],
        "rdn_fast.weights": ["*.safetensors", "*.md"],
        "rdn_fast.rdb": ["*.c", "*.cu", "*.cuh"],
        "rdn_fast.data": ["*.c"],
        "rdn_fast.report": ["*.css", "*.js"],
    },
    entry_points={"console_scripts": ["rdn-fast = rdn_fast.cli:main"]},
    install_requires=[
        "torch>=2.7",  # torch.accelerator, `with torch.Stream`
        "numpy",
        "h5py",  # the reference's file format
        "pillow>=11",  # reads pictures; its bicubic makes the LR images
        "rich",  # progress bars and tables
        "safetensors",  # weights that cannot hold code
        "filelock",  # one run a folder; torch requires it already
        "tomli; python_version < '3.11'",  # reads --config; newer Pythons have it as tomllib
    ],
    extras_require={
        "npu": ["torch-npu==2.13.0", "torch==2.13.0"],  # torch-npu works with its exact torch only
        "triton": [triton],  # comes with CUDA builds of torch
        "log": ["tensorboard"],  # curves in a browser
        "demo": ["scikit-image"],  # photographs in its wheel; SSIM oracle of the tests
        "export": ["onnx", "onnxruntime"],  # writes ONNX files, and checks what they compute
        "spandrel": ["spandrel"],  # rdn_fast.spandrel: RDN in chaiNNer's and ComfyUI's loader
        "bench": ["onnx", "onnxruntime", "openvino"],  # other runtimes' rows in `make bench`
        "dev": [
            "pytest",
            "pytest-xdist",
            "pytest-benchmark",
            "py-spy",
            "ruff",
            "clang-format",
            "hypothesis",
            "matplotlib",
            triton,
        ],
    },
)
