"""How each kind of figure is obtained, in words, for whoever reads a page without the code."""

METHODS = {
    "graph": (
        "So many launches as the record says are captured in one CUDA graph; CUDA events around replays, divided by "
        "the launches. A block is about 1 ms of replays; a round is one memory layout in one process, its value the "
        "median of its blocks."
    ),
    "eager": (
        "Calls from Python, one after another, between two CUDA events; what the host takes to enqueue them is in the "
        "figure. On a virtual machine the host's noise dominates."
    ),
    "prepare": "Host time to plan a batch and send it to the GPU, without the launch.",
    "work": (
        "Counted, not timed: Triton's interpreter counts programs, loads, stores, bytes and sectors of one launch; "
        "registers, spills, widths and instructions are those of the kernel compiled for sm_90."
    ),
    "time": (
        "Geometric mean of the rounds. Each point was compared with a torch oracle before it was timed, outputs "
        "poisoned first: one that differs is marked wrong and has no time."
    ),
    "ratio": "Time of the contender over ours (vocab-major table) on the same case and clock; above 1 ours is faster.",
    "engine": (
        "A process is one real SGLang engine; modes run in turns, there and back. A value of a mode is the geometric "
        "mean over its processes, each the median of its samples; processes apart: the largest over the smallest, "
        "less 1. Ratios are taken within a repeat. A step is the time of long answers less that of short ones over the "
        "difference of their tokens."
    ),
    "floor": (
        "The larger of two times that no implementation can beat: an empty kernel, measured the same way in the same "
        "run, and the least bytes of the lookup over the bandwidth of a 1 GiB copy."
    ),
}
