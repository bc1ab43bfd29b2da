"""What the build recorded; see cmake/build_info.py.in."""

VERSION: str
TORCH_VERSION: str
CPU_ISAS: list[str]
CUDA_ABSENCE: str
CUDA_VERSION: str
CUDA_CODE: list[str]

def check_torch(version: str, cuda: str | None) -> None: ...
