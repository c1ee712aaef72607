import subprocess
import sys

LISTENING = """
import psutil
from lotlip_platform.local_services import use_local_services
use_local_services()
from lotlip_platform.cluster import connected
with connected():
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        for socket in process.net_connections(kind="tcp"):
            if socket.status == psutil.CONN_LISTEN:
                print(socket.laddr.ip)
"""


def test_the_ray_that_a_command_starts_for_itself_cannot_be_reached_from_outside() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LISTENING], capture_output=True, text=True, check=True, timeout=120
    )
    addresses = done.stdout.split()
    assert len(addresses) > 3
    assert set(addresses) <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
