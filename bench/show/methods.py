"""Explains how each kind of figure is obtained, for readers of a page who do not know the code."""

METHODS = {
    "graph": (
        "Many launches (the record says how many) are captured in one CUDA graph. CUDA events time its replays, and "
        "the time is divided by the number of launches. A block is about 1 ms of replays. A round is one memory "
        "layout in one process, "
        "and its value is the median of its blocks."
    ),
    "eager": (
        "CUDA events time calls from Python, one after another. The figure includes the host time to enqueue them. "
        "On a "
        "virtual machine the host's noise dominates."
    ),
    "prepare": "Host time to plan a batch and send it to the GPU, without the launch.",
    "work": (
        "Counted, not timed. Triton's interpreter counts programs, loads, stores, bytes and sectors of one launch. "
        "Registers, spills, widths and instructions are those of the kernel compiled for sm_90."
    ),
    "time": (
        "Geometric mean of the rounds. Each point was compared with a torch oracle before it was timed, after its "
        "outputs "
        "had been poisoned. A point that differs is marked wrong and has no time."
    ),
    "ratio": "Time of the contender over ours (vocab-major table) on the same case and clock; above 1 ours is faster.",
    "engine": (
        "A process is one real SGLang engine; modes run in turns, there and back. A value of a mode is the geometric "
        "mean over its processes, each the median of its samples; processes apart: the largest over the smallest, "
        "less 1. Ratios are taken within a repeat. A step is the time of long answers less that of short ones over the "
        "difference of their tokens."
    ),
    "floor": (
        "The larger of two bounds: the time of an empty kernel, measured in the same way in the same run, and the "
        "least "
        "bytes of the lookup divided by the bandwidth of a 1 GiB copy."
    ),
}
