"""What a command does to the allocators of its process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest


def printed(code: str) -> str:
    start = "from clair_apo.memory import keep_memory, spare_memory, spare_pandas\n"
    done = subprocess.run([sys.executable, "-c", start + code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_pyarrow_keeps_no_pool_of_its_own() -> None:
    code = "spare_memory()\nimport pyarrow as pa\nprint(pa.default_memory_pool().backend_name)"
    assert printed(code) == "system"


def test_a_pool_that_was_asked_for_stays() -> None:
    code = (
        "import os\nos.environ['ARROW_DEFAULT_MEMORY_POOL'] = 'mimalloc'\nspare_memory()\n"
        "print(os.environ['ARROW_DEFAULT_MEMORY_POOL'])"
    )
    assert printed(code) == "mimalloc"


def test_lists_become_arrays_without_pandas() -> None:
    pytest.importorskip("pandas")
    lists = "import sys\nimport pyarrow as pa\npa.array([1, 2])\nprint('pandas' in sys.modules)"
    assert printed(lists) == "True"  # or there would be nothing to spare
    assert printed("spare_pandas()\n" + lists) == "False"


def test_pandas_is_there_for_who_asks_for_it() -> None:
    pytest.importorskip("pandas")
    code = (
        "spare_pandas()\nimport pyarrow as pa\nframe = pa.table({'a': [1, 2]}).to_pandas()\n"
        "import pandas\nprint(isinstance(frame, pandas.DataFrame), frame['a'].sum())"
    )
    assert printed(code) == "True 3"


def test_pandas_that_is_imported_already_is_still_known() -> None:
    pytest.importorskip("pandas")
    code = (
        "import pandas\nspare_pandas()\nimport pyarrow as pa\n"
        "print(pa.array(pandas.Series([1.0, None])).null_count)"
    )
    assert printed(code) == "1"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_kept_memory_is_not_cleared_anew() -> None:
    many = (
        "import ctypes, resource\n"
        "libc = ctypes.CDLL(None)\n"
        "libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]\n"
        "def once():\n"
        "    block = libc.malloc(ctypes.c_size_t(100 << 20))\n"
        "    ctypes.memset(block, 1, 100 << 20)\n"
        "    libc.free(block)\n"
        "once()\nbefore = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(5):\n    once()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)"
    )
    assert int(printed(many)) > 100  # huge pages, if the system gives them by itself
    assert int(printed("keep_memory()\n" + many)) < 50
