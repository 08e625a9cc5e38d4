"""rdn_fast: train and evaluate Residual Dense Networks for super-resolution, fast."""

__version__ = "0.1.0"


def __getattr__(name: str):
    # Loaded on first use: `rdn-fast --help` must not wait for torch.
    if name == "Config":
        from rdn_fast.config import Config

        return Config
    if name == "RDN":
        from rdn_fast.model import RDN

        return RDN
    raise AttributeError(f"module 'rdn_fast' has no attribute {name!r}")
