"""What every test with PyTorch shares."""

import pytest


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """The models are tiny: on a busy machine, threads that wait for each other take most of the time."""
    import torch  # noqa: PLC0415

    torch.set_num_threads(1)
