"""The rewrite rules, in the order in which the fuser tries them. One rule is one module.

A rule that only removes maps and reduces comes before one that moves factors, because fused bodies show factors that
stand together; what moves factors in a tile comes before what moves them out of loops, which reads its result; what
splits a function comes after both, since it makes factors for them; rule 8 makes values twice, so it is asked only
where nothing else applies; rule 2 comes last, because maps that depend on one another now may not later.
"""

from __future__ import annotations

from blockc.ir.decisions import Rule
from blockc.passes.rules import (
    distribute_reduction,
    extend_map,
    fuse_consecutive_maps,
    fuse_elementwise,
    fuse_map_with_reduce,
    fuse_sibling_maps,
    hoist_map,
    interchange_maps,
    peel_first_iteration,
    reassociate_contraction,
    rematerialise,
    split_exponential,
    split_product,
    split_reduction,
    swap_scale_and_contraction,
    swap_shift_and_contraction,
)

RULES: tuple[Rule, ...] = (
    fuse_map_with_reduce.RULE,
    fuse_consecutive_maps.RULE,
    swap_scale_and_contraction.RULE,
    swap_shift_and_contraction.RULE,
    distribute_reduction.RULE,
    split_exponential.RULE,
    split_product.RULE,
    rematerialise.RULE,
    fuse_sibling_maps.RULE,
)
SNAPSHOT_RULES: tuple[Rule, ...] = (
    extend_map.RULE,
    interchange_maps.RULE,
    reassociate_contraction.RULE,
    hoist_map.RULE,
)
EMISSION_RULES: tuple[Rule, ...] = (fuse_elementwise.RULE, peel_first_iteration.RULE)  # the second copies what is left
ASKED_RULES: tuple[Rule, ...] = (split_reduction.RULE,)  # they run when somebody asks for them
ALL_RULES: tuple[Rule, ...] = (*RULES, *SNAPSHOT_RULES, *ASKED_RULES, *EMISSION_RULES)
