"""The accelerator table: a provider's name means one device, or it is listed with the reason and never guessed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from markets.facts.accelerators import chips, identify
from workers.fit import capability


@pytest.mark.parametrize(
    ("raw", "memory_mib", "form", "ours"),
    [
        ("8x A100 (80 GB SXM4)", None, None, "a100-sxm-80"),  # lambda
        ("nvidia-h100-mega-80gb", None, None, "h100-sxm"),  # gcp
        ("nvidia-tesla-a100", 40_960, None, "a100-40"),  # gcp: the 40 GB one, whose form it does not say
        ("NVIDIA H100 80GB HBM3", None, None, "h100-sxm"),  # runpod: the driver's name of the SXM board
        ("NVIDIA H100 PCIe", None, None, "h100-pcie"),
        ("H100 NVL", None, None, "h100-nvl"),
        ("H100_80GB", None, "SXM5", "h100-sxm"),  # prime intellect: the form apart
        ("A100_80GB", None, "PCIe", "a100-pcie-80"),
        ("A100-SXM4-80GB", None, None, "a100-sxm-80"),
        ("H200 PCIe", None, None, "h200-nvl"),  # the only H200 on a card
        ("H100", None, None, "h100"),  # no form said: none is invented
        ("GH200_96GB", None, None, "gh200-96"),
        ("L40S", 45_776, None, "l40s"),  # as AWS reports it, 6.9 % below 48 GiB
        ("L4", 22_888, None, "l4"),
        ("RTX 6000 Ada Generation", None, None, "rtx-6000-ada"),
        ("RTX A6000", None, None, "rtx-a6000"),
        ("Quadro RTX 6000", None, None, "quadro-rtx-6000"),  # three cards of one number
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", None, None, "rtx-pro-6000"),
        ("AMD Instinct MI300X OAM", None, None, "mi300x"),
        ("ct5lp", None, None, "tpu-v5e"),
        ("Gaudi HL-205", None, None, "gaudi1"),
        ("Trainium2", None, None, "trainium2"),
    ],
)
def test_a_providers_name_means_one_device(raw: str, memory_mib: int | None, form: str | None, ours: str) -> None:
    found = identify(raw, count=1, memory_mib=memory_mib, form=form)
    assert (found.accelerator.name, found.problem) == (ours, None)


@pytest.mark.parametrize(
    ("raw", "memory_mib"),
    [
        ("A100", None),  # 40 or 80 GB
        ("V100", None),
        ("GH200 480GB", None),  # 480 GB are the processor's
        ("H100", 40_960),  # a MIG slice
        ("Qualcomm AI 100", None),
        ("H100 SXM5 XL turbo", None),
        ("", None),
    ],
)
def test_what_a_name_does_not_settle_is_listed_and_not_guessed(raw: str, memory_mib: int | None) -> None:
    found = identify(raw, count=2, memory_mib=memory_mib)
    assert found.problem is not None and repr(raw) in found.problem
    assert found.accelerator.kind == "none" and found.accelerator.count == 2
    assert found.accelerator.name not in chips()


def test_every_row_is_found_again_by_its_own_name_and_is_plausible() -> None:
    for name, chip in chips().items():
        assert identify(name, count=1).accelerator.name == name
        assert identify(name, count=1).problem is None
        assert chip.engines and chip.bandwidth_gb_s > 0 and 8 * 1024 <= chip.memory_mib <= 288 * 1024
        if chip.fp8_tflops is not None:
            assert chip.fp16_tflops is not None and chip.fp8_tflops >= chip.fp16_tflops, name


def test_the_fit_of_models_knows_the_same_nvidia_devices() -> None:
    """A name of the table that `workers.fit` cannot read would be fitted blindly."""
    blind = [name for name, chip in chips().items() if chip.kind == "nvidia" and capability(name) is None]
    assert blind == []


def test_fp8_is_claimed_only_where_the_arithmetic_exists() -> None:
    wrong = [n for n, c in chips().items() if c.kind == "nvidia" and c.fp8_tflops and (capability(n) or 0) < 89]
    assert wrong == []


@given(st.text(), st.integers(-2, 16), st.one_of(st.none(), st.integers(-5, 300_000)), st.one_of(st.none(), st.text()))
def test_any_words_give_an_accelerator_of_the_table_or_a_reason(
    raw: str, count: int, memory_mib: int | None, form: str | None
) -> None:
    found = identify(raw, count=count, memory_mib=memory_mib, form=form)
    assert (found.problem is None) == (found.accelerator.name in chips() and found.accelerator.kind != "none")
