"""A checked model as the text that LightGBM loads: the writer to `modelfile`'s reader.

LightGBM never sees a model file of somebody else's. What its C++ would end the process over (`modelfile` says why) cannot come from
here: every count fits its values, `tree_sizes` are measured, and lines that predicting does not need are left out, the trainer's
`parameters` among them, which name files and machines. Numbers are written so that they read back as the same float64.
"""

from __future__ import annotations

import numpy as np

from .modelfile import ModelFile, Tree

__all__ = ["write"]


def write(file: ModelFile) -> str:
    """Write the model as `booster.save_model` would, without what training leaves behind."""
    trees = [f"Tree={number}\n{_tree(tree)}\n\n" for number, tree in enumerate(file.trees)]
    head = [
        "tree",
        "version=v4",
        f"num_class={file.groups}",
        f"num_tree_per_iteration={file.groups}",
        "label_index=0",
        f"max_feature_idx={file.columns - 1}",
        # Without the line an objective of the trainer's own; an empty one ends the process.
        *([f"objective={' '.join(file.objective)}"] if file.objective else []),
        *(["average_output"] if file.average else []),
        # The file's own names may be anything; what serves tells them, LightGBM need not.
        "feature_names=" + " ".join(f"Column_{column}" for column in range(file.columns)),
        "feature_infos=" + " ".join(["none"] * file.columns),
        "tree_sizes=" + " ".join(str(len(tree)) for tree in trees),
    ]
    return "\n".join([*head, "", "".join(trees) + "end of trees", ""])


def _tree(tree: Tree) -> str:
    leaves = len(tree.leaf)
    sets = len(tree.set_bounds) - 1
    lines = [f"num_leaves={leaves}", f"num_cat={sets}"]

    def line(key: str, values: np.ndarray) -> None:
        lines.append(f"{key}={' '.join(map(repr, values.tolist()))}")

    line("split_feature", tree.feature)
    line("threshold", tree.threshold)
    line("decision_type", tree.decision)
    line("left_child", tree.left)
    line("right_child", tree.right)
    line("leaf_value", tree.leaf)
    if tree.leaf_counts is not None:
        line("leaf_count", tree.leaf_counts)
    if tree.inner_counts is not None:
        line("internal_count", tree.inner_counts)
    if sets:
        line("cat_boundaries", tree.set_bounds)
        line("cat_threshold", tree.set_words)
    lines.append(f"is_linear={int(tree.linear is not None)}")
    if tree.linear is not None:
        line("leaf_const", tree.linear.const)
        line("num_features", tree.linear.counts)
        line("leaf_features", tree.linear.features)
        line("leaf_coeff", tree.linear.coefficients)
    lines.append("shrinkage=1")
    return "\n".join(lines) + "\n"
