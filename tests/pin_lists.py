"""Pin lists that are right and wrong for a model of two layers and sixteen experts.

Python's reader and the programs' must agree on all of them.
"""

N_LAYER, N_EXPERT = 2, 16

HEAD = "# EXPERT_CACHE_PIN_LIST v1\nn_layer 2\nn_expert 16\n"

WRONG = {
    "": "line 1",
    "n_layer 2\n": "line 1",
    "# EXPERT_CACHE_PIN_LIST v1\n": "line 2",
    "# EXPERT_CACHE_PIN_LIST v1\nn_layers 2\n": "line 2",
    "# EXPERT_CACHE_PIN_LIST v1\nn_layer two\n": "line 2",
    "# EXPERT_CACHE_PIN_LIST v1\nn_layer 2 3\n": "line 2",
    "# EXPERT_CACHE_PIN_LIST v1\nn_layer 3\nn_expert 16\n": "line 2",
    "# EXPERT_CACHE_PIN_LIST v1\nn_layer 2\nn_expert 17\n": "line 3",
    "# EXPERT_CACHE_PIN_LIST v1\nn_layer 2\nlayer 0:\n": "line 3",
    HEAD: "line 4",
    HEAD + "layer 0: 1\n": "line 5",
    HEAD + "layer 1: 1\nlayer 0:\n": "line 4",
    HEAD + "layer 0 : 1\nlayer 1:\n": "line 4",
    HEAD + "layer 0: 1 16\nlayer 1:\n": "line 4",
    HEAD + "layer 0: -1\nlayer 1:\n": "line 4",
    HEAD + "layer 0: 1_0\nlayer 1:\n": "line 4",
    HEAD + "layer 0: 0x1\nlayer 1:\n": "line 4",
    HEAD + "layer 0: 1\nlayer 1: 2 3 2\n": "line 5",
    HEAD + "layer 0: 1\nlayer 1: 2\u00a03\n": "line 5",
    HEAD + "layer 0: 1\nlayer 1:\n\n": "line 6",
    HEAD + "layer 0: 1\n# more\nlayer 1: 16\n": "line 6",
    HEAD + "layer 0: 1\nlayer 1:\n# more\n1\n": "line 7",
    HEAD + "layer 0: 1\n# more\n": "line 6",
    HEAD + "layer 0: 1\nlayer 1:\nlayer 2:\n": "line 6",
}
RIGHT = {
    HEAD + "layer 0: 1 0\nlayer 1:": ((1, 0), ()),
    HEAD.replace("\n", "\r\n") + "layer  0:\t1 07\r\nlayer 1: +3\r\n": ((1, 7), (3,)),
    HEAD.replace(
        "n_layer", "# source trace: t.bin\n# top_k: 8\n# format: 'layer <il>: ...'\nn_layer"
    )
    + "layer 0: 1 0 \nlayer 1: \n#": ((1, 0), ()),
    "# by hand, EXPERT_CACHE_PIN_LIST v1, 2026\n n_layer 2 \nn_expert 16\nlayer 0:\nlayer 1:\n": (
        (),
        (),
    ),
}
