"""Published rates of Ascend chips, and what npu_model assumes where nothing is published. Nothing here was measured.

A rate of a core is in bytes a cycle, as CANN's data/platform_config/Ascend*.ini have them ("ini" below).
"""

from __future__ import annotations

from dataclasses import dataclass

GIGA = 1e9
INI = "CANN 9's platform_config ini"


@dataclass(frozen=True)
class Chip:
    """A chip; of A3, which has two dies, one die. Rates that are not named per second are per cycle and core."""

    name: str
    cores: int  # with a matrix unit
    hertz: float
    l2_read: float
    l2_write: float
    l2: int  # bytes
    hbm: float  # bytes a second
    exchange: float  # seconds that an all-reduce of eight cards takes for a byte
    has_kernels: bool  # of npu_conv: the compiler has a target
    source: str

    products = 16**3  # of the matrix unit
    l1_to_a, l1_to_b = 512, 256  # bytes from L1 to the matrix unit's operands
    vector = 256  # bytes that a vector core computes

    @property
    def peak(self) -> float:
        """FLOP a second of all matrix units."""
        return self.cores * self.hertz * self.products * 2


MESH = 2 / 8 / (28 * GIGA)  # all pairs of eight cards are linked: each card sends and receives eighths, twice
GROUPS = 2 / 4 / (18 * GIGA) + 2 / 8 / (20 * GIGA)  # two groups of four, linked in pairs; between groups PCIe
A2 = {"l2_read": 110, "l2_write": 86, "l2": 192 << 20, "exchange": MESH, "has_kernels": True}

CHIPS = {
    chip.name: chip
    for chip in (
        Chip("910B2", 24, 1.80e9, **A2, hbm=1.38e12, source=f"{INI} (24 cores, 1.80 GHz, HBM 32 bytes a cycle)"),
        Chip("910B3", 20, 1.80e9, **A2, hbm=1.15e12, source=f"{INI} (20 cores; clock and rates as 910B2's: assumed)"),
        Chip("A3", 24, 1.85e9, **A2, hbm=1.42e12, source=f"{INI} (910_9392, one die: 24 cores, 1.85 GHz)"),
        Chip(
            "910",
            32,
            0.977e9,
            l2_read=128,
            l2_write=64,
            l2=32 << 20,
            hbm=1.2e12,
            exchange=GROUPS,
            has_kernels=False,
            source="Hot Chips 31 (32 cores, 256 TFLOP/s, HBM 1.2 TB/s)",
        ),
    )
}


@dataclass(frozen=True)
class Scenario:
    """What no page says. The two below are meant to hold the truth between them."""

    name: str
    startup: int  # cycles that each instruction of a kernel takes beside its bytes or products
    launch: float  # seconds that each launch takes beside its work
    matrix: float  # share of the peak that CANN's own convolutions and products reach
    converts: bool  # whether CANN copies the maps of its convolutions from and to its private format


FAST = Scenario("fast", startup=0, launch=1e-6, matrix=216 / 256, converts=False)
SLOW = Scenario("slow", startup=200, launch=6e-6, matrix=216 / 256, converts=True)
SCENARIOS = (FAST, SLOW)
LATENCY = 50e-6  # seconds of an all-reduce beside its bytes

ASSUMPTIONS = (
    "The compiled plan's instructions start in program order on each pipe, as soon as the flags that it has allow.",
    "A kernel's transfer takes its bytes over the rate of L2, which holds what a block touches (to read a forward "
    "pass's maps from HBM again would take about 1 ms of a step of 64 patches); each vector core has half a core's "
    "rate; cores do not slow each other down.",
    "A convolution takes the longest of its products (16 x 16 x 16 a cycle), its img2col from L1 (512 bytes a cycle) "
    "and its weights (256); the library's macro neither waits nor drains inside.",
    "A vector instruction takes 256 bytes a cycle of its widest operand.",
    f"fast: nothing else ({FAST.launch * 1e6:.0f} us a launch). slow: {SLOW.startup} more cycles for each instruction, "
    f"{SLOW.launch * 1e6:.0f} us a launch.",
    "torch's operators take the longer of FLOP at 84% of the peak (AIBench, 2024: 216 of 256 TFLOP/s in large products "
    "on the first 910) and of all bytes they read and write at the rate of HBM, one after another.",
    "fast: no operator converts formats. slow: each convolution copies its maps from and to the private format.",
    "Views are free; casts, additions and copies are operators of their own; input channels count as multiples of 16.",
    "All-reduce: 28 GB/s each way between any two cards of A2 and A3; on the first 910 18 GB/s within groups of "
    "four and 20 GB/s PCIe between them (the vendor's profiler's own standards); "
    f"{LATENCY * 1e6:.0f} us each; it slows nothing else down.",
    "The loader and the host are never waited for.",
)
