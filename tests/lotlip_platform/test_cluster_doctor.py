from lotlip_platform.cluster_doctor import _kinds, skew


def node(id: str, *, alive: bool = True, **resources: float) -> dict:
    return {"NodeID": id, "Alive": alive, "Resources": {**resources, f"node:{id}": 1.0}}


def test_one_machine_of_each_kind_is_looked_at_the_head_first() -> None:
    small, large = {"CPU": 8.0, "memory": 32e9}, {"CPU": 64.0, "GPU": 8.0, "memory": 512e9}
    head = {"memory": 16e9, "node:__internal_head__": 1.0}
    nodes = [
        node("a", **small),
        node("b", **large),
        node("c", **small),
        node("dead", alive=False, CPU=1.0),
        node("h", **head),
    ]
    found = [(kind.name, kind.num_nodes, kind.node, kind.gpus) for kind in _kinds(nodes)]
    assert found == [
        ("head", 1, "h", 0.0),
        ("64 CPUs, 8 GPUs, 512 GB", 1, "b", 8.0),
        ("8 CPUs, 32 GB", 2, "a", 0.0),
    ]


def test_a_clock_is_off_by_what_the_way_there_does_not_explain() -> None:
    assert skew(0.3, 0.1).state == "ok"
    assert skew(-5.0, 4.5).state == "ok"
    assert skew(-5.0, 0.1).state == "warning"
    assert skew(90.0, 0.1).state == "error"
    assert skew(-90.0, 0.1).found == "-90.00 s to the head's, +-0.10"
