"""The memory budget, on made trees of /proc and /sys/fs/cgroup. Oracle: closed form."""

from pathlib import Path

import pytest
import torch

from rightbatch.errors import RightBatchError
from rightbatch.hardware.budget import (
    cpu_budget_bytes,
    device_budget_bytes,
    host_free_bytes,
    room_beside_bytes,
)

GIB = 2**30
NO_LIMIT_V1 = "9223372036854771712"


@pytest.fixture
def machine(tmp_path: Path) -> "Machine":
    return Machine(tmp_path)


class Machine:
    """A pretended machine: write files, then ask for its budget."""

    def __init__(self, folder: Path) -> None:
        self.proc, self.cgroup = folder / "proc", folder / "cgroup"

    def write(self, files: dict[str, str | int]) -> "Machine":
        for name, text in files.items():
            path = self.proc.parent / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        return self

    def available(self, count_bytes: int) -> "Machine":
        return self.write(
            {"proc/meminfo": f"MemTotal: 1 kB\nMemAvailable: {count_bytes // 1024} kB"}
        )

    def headroom_bytes(self) -> float:
        """The budget before its safety share was taken."""
        return cpu_budget_bytes(proc=self.proc, cgroup=self.cgroup) / 0.75


def test_available_memory_is_the_budget_where_nothing_else_limits(machine: Machine) -> None:
    assert machine.available(8 * GIB).headroom_bytes() == 8 * GIB


def test_every_ancestor_of_a_v2_group_counts_and_cache_does_not(machine: Machine) -> None:
    machine.available(64 * GIB).write(
        {
            "proc/self/cgroup": "0::/user/job/step",
            "cgroup/user/job/step/memory.max": "max",
            "cgroup/user/job/step/memory.current": 1 * GIB,
            "cgroup/user/job/memory.max": 10 * GIB,
            "cgroup/user/job/memory.current": 5 * GIB,
            "cgroup/user/job/memory.stat": f"anon 5\ninactive_file {2 * GIB}\nactive_file 7",
            "cgroup/user/memory.max": 40 * GIB,
            "cgroup/user/memory.current": 5 * GIB,
        }
    )
    assert machine.headroom_bytes() == (10 - (5 - 2)) * GIB


def test_memory_high_limits_before_memory_max(machine: Machine) -> None:
    machine.available(64 * GIB).write(
        {
            "proc/self/cgroup": "0::/job",
            "cgroup/job/memory.max": 10 * GIB,
            "cgroup/job/memory.high": 6 * GIB,
            "cgroup/job/memory.current": 1 * GIB,
        }
    )
    assert machine.headroom_bytes() == 5 * GIB


def test_a_v1_group_counts_with_its_ancestors(machine: Machine) -> None:
    machine.available(64 * GIB).write(
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/elsewhere\n4:memory:/slurm/job",
            "cgroup/memory/slurm/job/memory.limit_in_bytes": NO_LIMIT_V1,
            "cgroup/memory/slurm/job/memory.usage_in_bytes": 1 * GIB,
            "cgroup/memory/slurm/memory.limit_in_bytes": 12 * GIB,
            "cgroup/memory/slurm/memory.usage_in_bytes": 4 * GIB,
            "cgroup/memory/slurm/memory.stat": f"inactive_file 1\ntotal_inactive_file {GIB}",
        }
    )
    assert machine.headroom_bytes() == 9 * GIB


def test_an_unlimited_v1_group_does_not_limit(machine: Machine) -> None:
    machine.available(3 * GIB).write(
        {
            "proc/self/cgroup": "4:memory:/job",
            "cgroup/memory/job/memory.limit_in_bytes": NO_LIMIT_V1,
            "cgroup/memory/job/memory.usage_in_bytes": 1,
        }
    )
    assert machine.headroom_bytes() == 3 * GIB


def test_both_hierarchies_count_on_a_hybrid_machine(machine: Machine) -> None:
    v2 = {
        "cgroup/unified/job/memory.max": 7 * GIB,
        "cgroup/unified/job/memory.current": 0,
    }
    v1 = {
        "cgroup/memory/job/memory.limit_in_bytes": 5 * GIB,
        "cgroup/memory/job/memory.usage_in_bytes": 0,
    }
    groups = {"proc/self/cgroup": "4:memory:/job\n0::/job"}
    assert machine.available(64 * GIB).write(groups | v2).headroom_bytes() == 7 * GIB
    assert machine.write(v1).headroom_bytes() == 5 * GIB


def test_a_container_that_sees_its_hosts_path_finds_its_own_group_at_the_mount(
    machine: Machine,
) -> None:
    machine.available(64 * GIB).write(
        {
            "proc/self/cgroup": "0::/../../system.slice/docker-4f1e.scope",
            "cgroup/memory.max": 2 * GIB,
            "cgroup/memory.current": 1 * GIB,
        }
    )
    assert machine.headroom_bytes() == 1 * GIB


@pytest.mark.parametrize(
    ("limit", "counter"), [("Max address space", "VmSize"), ("Max data size", "VmData")]
)
def test_resource_limits_count(machine: Machine, limit: str, counter: str) -> None:
    machine.available(64 * GIB).write(
        {
            "proc/self/limits": (
                "Limit                     Soft Limit           Hard Limit           Units     \n"
                "Max cpu time              10                   unlimited            seconds   \n"
                f"{limit:25} {4 * GIB:<20} unlimited            bytes     "
            ),
            "proc/self/status": f"Name:\tpython\n{counter}:\t{GIB // 1024} kB",
        }
    )
    assert machine.headroom_bytes() == 3 * GIB


@pytest.mark.parametrize(("ranks", "share"), [("", 1), ("4", 4), ("0", 1), ("many", 1)])
def test_local_ranks_share_what_is_free_and_not_their_own_limits(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, ranks: str, share: int
) -> None:
    """All of them measure at one time, and each would take three quarters of the same memory."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    assert machine.available(8 * GIB).headroom_bytes() == 8 * GIB // share
    machine.write(
        {
            "proc/self/cgroup": "0::/job",
            "cgroup/job/memory.max": 7 * GIB,
            "cgroup/job/memory.current": 3 * GIB,
        }
    )
    assert machine.headroom_bytes() == 4 * GIB // share
    machine.write(
        {
            "proc/self/limits": f"Max data size    {GIB}    unlimited    bytes",
            "proc/self/status": "VmData:\t0 kB",
        }
    )
    assert machine.headroom_bytes() == GIB
    assert host_free_bytes(proc=machine.proc, cgroup=machine.cgroup) == 4 * GIB // share


@pytest.mark.parametrize("kind", ["cpu", "mps"])
def test_a_second_process_of_the_host_needs_its_libraries_too(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr("rightbatch.hardware.budget.host_free_bytes", lambda: 2 * GIB)
    assert room_beside_bytes(torch.device(kind)) == 2 * GIB - 300 * 2**20


def test_unlimited_resources_do_not_limit(machine: Machine) -> None:
    machine.available(2 * GIB).write(
        {
            "proc/self/limits": "Max data size             unlimited            unlimited   bytes",
            "proc/self/status": "VmData:\t1 kB",
        }
    )
    assert machine.headroom_bytes() == 2 * GIB


def test_a_group_that_is_already_full_leaves_nothing(machine: Machine) -> None:
    machine.available(64 * GIB).write(
        {
            "proc/self/cgroup": "0::/job",
            "cgroup/job/memory.max": 1 * GIB,
            "cgroup/job/memory.current": 2 * GIB,
        }
    )
    assert machine.headroom_bytes() == 0


def test_without_proc_half_of_the_physical_memory_counts(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = {"SC_PHYS_PAGES": 2**20, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr("os.sysconf", pages.__getitem__)
    assert machine.headroom_bytes() == 2 * GIB


def test_a_system_that_does_not_tell_its_memory_is_named(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("os.sysconf")
    monkeypatch.setattr("sys.platform", "win32")
    with pytest.raises(RightBatchError, match=r"can be read on Linux and macOS, got 'win32'\."):
        machine.headroom_bytes()


def test_this_machines_budget_is_what_the_cpu_device_gets() -> None:
    budget = device_budget_bytes(torch.device("cpu"))
    assert budget > 0
    assert budget == pytest.approx(cpu_budget_bytes(), rel=0.2)


@pytest.mark.gpu
def test_the_accelerators_budget_shrinks_by_what_is_allocated(device: torch.device) -> None:
    before = device_budget_bytes(device)
    block = torch.ones(2**30, dtype=torch.uint8, device=device)
    assert before - device_budget_bytes(device) == pytest.approx(0.9 * block.numel(), rel=0.1)
