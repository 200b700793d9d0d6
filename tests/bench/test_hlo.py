"""Reading a compiled step: every instruction counted as often as it runs, and given to the right part.

The text is cut from a real program: a block of HunyuanVideo-13B for a v5e.
"""

import pytest

from qsjax.bench.hlo import bytes_of, elements, parse
from qsjax.bench.hlo_run import executed
from qsjax.bench.hlo_sources import sources
from qsjax.bench.step_parts import Kernel, read
from qsjax.budget import parts

BODY = "jit(denoise_step)/while/body/closed_call"
TEXT = """HloModule jit_denoise_step, is_scheduled=true

FileNames
1 "/somewhere/qsjax/dit/blocks.py"
2 "/somewhere/qsjax/dit/rope.py"
3 "/somewhere/qsjax/residual/lowrank.py"

FunctionNames
1 "SingleBlock.__call__"
2 "apply_rope"
3 "factorize"

FileLocations
1 {file_name_id=1 function_name_id=1 line=140 end_line=140 column=16 end_column=30}
2 {file_name_id=2 function_name_id=2 line=58 end_line=58 column=14 end_column=60}
3 {file_name_id=3 function_name_id=3 line=60 end_line=60 column=14 end_column=60}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=2}

%fused_rope (param_0: bf16[1,256,64,2]) -> f32[1,256,64,2] {
  %param_0 = bf16[1,256,64,2]{1,0,3,2:T(2,128)(2,1)} parameter(0)
  ROOT %convert.1 = f32[1,256,64,2]{1,0,3,2:T(1,128)} convert(%param_0), metadata={op_name="BODY/single_block/convert_element_type" stack_frame_id=2}
}

%fused_product (param_0: s8[256,128], param_1: s8[128,512]) -> bf16[256,512] {
  %param_0 = s8[256,128]{1,0:T(32,128)(4,1)} parameter(0)
  %param_1 = s8[128,512]{1,0:T(32,128)(4,1)} parameter(1)
  %convolution.1 = s32[256,512]{1,0:T(8,128)} convolution(%param_0, %param_1), dim_labels=bf_io->bf, metadata={op_name="BODY/single_block/linear1/dot_general" stack_frame_id=1}
  ROOT %convert.2 = bf16[256,512]{1,0:T(8,128)(2,1)} convert(%convolution.1)
}

%body (arg: (s32[], bf16[1,256,512])) -> (s32[], bf16[1,256,512]) {
  %arg = (s32[]{:T(128)}, bf16[1,256,512]{2,1,0:T(8,128)(2,1)}, /*index=2*/s8[128,512]{1,0:T(32,128)(4,1)}) parameter(0)
  %get-tuple-element.1 = bf16[1,256,512]{2,1,0:T(8,128)(2,1)} get-tuple-element(%arg), index=1
  %quantize_tokens.1 = (s8[256,128]{1,0:T(32,128)(4,1)}, f32[1,1,256]{2,1,0:T(1,128)}) custom-call(%get-tuple-element.1), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={"a
newline"}}, metadata={op_name="BODY/single_block/linear1/quantize_tokens/pallas_call" stack_frame_id=1}, backend_config={"custom_call_config":{"body":"TUzv"},"bundle_analysis_data":{"flops":"0","estimated_cycles":"700"}}
  %custom-call.2 = f32[256,64]{0,1:T(8,128)S(1)} custom-call(%slice.1), custom_call_target="ConcatBitcast", backend_config={"aliasing_operands":{"lists":[]}}
  %fusion.1 = bf16[256,512]{1,0:T(8,128)(2,1)} fusion(%quantize_tokens.1, %get-tuple-element.1), kind=kOutput, calls=%fused_product, metadata={op_name="BODY/single_block/linear1/dot_general" stack_frame_id=1}, backend_config={"window_config":{"estimated_cycles":"1000","mask":false},"bundle_analysis_data":{"estimated_cycles":"4"}}
  %slice.1 = bf16[256,384]{1,0:T(8,128)(2,1)} slice(%fusion.1), slice={[0:256], [128:512]}, metadata={op_name="BODY/single_block/slice" stack_frame_id=1}, backend_config={"window_config":{"estimated_cycles":"60"}}
  %fusion.2 = f32[1,256,64,2]{1,0,3,2:T(1,128)} fusion(%slice.1), kind=kLoop, calls=%fused_rope, metadata={op_name="BODY/single_block/linear1/dot_general" stack_frame_id=1}, backend_config={"window_config":{"estimated_cycles":"500"}}
  %copy.1 = f32[1,256,64,2]{3,2,1,0:T(8,128)} copy(%fusion.2), backend_config={"window_config":{"estimated_cycles":"40"}}
  %dot.1 = f32[512,16]{1,0:T(8,128)} convolution(%fusion.1, %slice.1), metadata={op_name="BODY/single_block/attention/dot_general" stack_frame_id=3}, backend_config={"window_config":{"estimated_cycles":"30"}}
  %tanh.1 = bf16[256,512]{1,0:T(8,128)(2,1)} tanh(%fusion.1), metadata={op_name="BODY/single_block/tanh" stack_frame_id=1}, backend_config={"window_config":{"estimated_cycles":"7"}}
  %nameless.1 = bf16[256,512]{1,0:T(8,128)(2,1)} add(%get-tuple-element.1, %get-tuple-element.1), backend_config={"window_config":{"estimated_cycles":"5"}}
  ROOT %tuple.1 = (s32[]{:T(128)}, bf16[1,256,512]{2,1,0:T(8,128)(2,1)}) tuple(%get-tuple-element.1, %tanh.1)
}

%condition (arg.2: (s32[], bf16[1,256,512])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(3), backend_config={"flag_configs":[]}
  %arg.2 = (s32[]{:T(128)}, bf16[1,256,512]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %get-tuple-element.2 = s32[]{:T(128)} get-tuple-element(%arg.2), index=0
  ROOT %lt.1 = pred[]{:T(512)} compare(%get-tuple-element.2, %constant.1), direction=LT, metadata={op_name="jit(denoise_step)/while/cond/lt" stack_frame_id=1}
}

%cheap (p: bf16[4]) -> bf16[4] {
  ROOT %add.1 = bf16[4]{0} add(%p, %p), backend_config={"window_config":{"estimated_cycles":"1"}}
}

%dear (p: bf16[4]) -> bf16[4] {
  ROOT %add.2 = bf16[4]{0} add(%p, %p), backend_config={"window_config":{"estimated_cycles":"9"}}
}

ENTRY %main.1 (latents: f32[4,256]) -> bf16[1,256,512] {
  %latents = f32[4,256]{1,0:T(4,128)} parameter(0)
  %copy.9 = f32[4,256]{0,1:T(8,128)} copy(%latents), metadata={op_name="jit(denoise_step)/embed/transpose"}, backend_config={"window_config":{"estimated_cycles":"11"}}
  %conditional.1 = bf16[4]{0} conditional(%latents, %latents, %latents), branch_computations={%cheap, %dear}
  %while.1 = (s32[]{:T(128)}, bf16[1,256,512]{2,1,0:T(8,128)(2,1)}) while(%copy.9), condition=%condition, body=%body, metadata={op_name="jit(denoise_step)/while" stack_frame_id=1}
  ROOT %get-tuple-element.9 = bf16[1,256,512]{2,1,0:T(8,128)(2,1)} get-tuple-element(%while.1), index=1
}
""".replace("BODY", BODY)


def test_cycles_by_block_and_part():
    reading = read(TEXT, depth=3)
    assert reading.blocks == {
        "double": {},
        "single": {
            "products": 1000,
            "slices and concatenations": 60,
            # What is inside of a fusion decides, and what a nameless copy copies.
            "RoPE and norms": 500,
            "orders and transposes": 40,
            "low rank": 30,
            # No part fits one; the other has no scope, but is in the loop.
            "rest": 7 + 5,
        },
        "ends": {"orders and transposes": 11, "rest": 9},
    }


def test_kernels_are_those_of_pallas():
    (kernel,) = read(TEXT, depth=3).kernels
    moved = 256 * 128 + 4 * 256 + 2 * 256 * 512
    path = "linear1/quantize_tokens"
    assert kernel == Kernel("single", "token quantization", path, 1.0, 256 * 128, moved, 700)
    told = TEXT.replace(
        'custom_call_target="tpu_custom_call",',
        'custom_call_target="tpu_custom_call", operand_layout_constraints={bf16[1,256,512]{2,1,0}, f32[], s8[4]{0}},',
    )
    assert read(told, depth=3).kernels[0].operands == ((1, 256, 512), (), (4,))


def test_loops_run_as_often_as_their_conditions_say():
    steps = {step.instruction.name: step for step in executed(TEXT)}
    assert steps["tanh.1"].times == 3
    assert steps["tanh.1"].loops == ("body",)
    assert steps["copy.9"].times == 1
    told = TEXT.replace(
        "body=%body, metadata",
        'body=%body, backend_config={"known_trip_count":{"n":"5"}}, metadata',
    )
    assert {step.times for step in executed(told) if step.loops} == {5}
    unknown = TEXT.replace("constant(3)", "add(%a, %b)")
    assert {step.times for step in executed(unknown) if step.loops} == {1}
    assert {step.times for step in executed(unknown, unknown=12) if step.loops} == {12}


def test_a_profiled_program_has_both_costs():
    computations, entry = parse(TEXT)
    assert entry == "main.1"
    fusion = next(one for one in computations["body"] if one.name == "fusion.1")
    assert (fusion.cycles, fusion.profiled) == (1000, 4)


def test_sources_are_the_functions_innermost_first():
    assert sources(TEXT)[2] == (
        ("dit/rope.py", "apply_rope"),
        ("dit/blocks.py", "SingleBlock.__call__"),
    )
    # Other versions number the parents as they are.
    plain = TEXT.replace("parent_frame_id=1}", "parent_frame_id=0}").replace("id=2}", "id=1}")
    assert sources(plain)[3][-1] == ("dit/blocks.py", "SingleBlock.__call__")
    assert sources("HloModule empty") == {}


def test_without_sources_nothing_is_lost():
    bare = TEXT.replace("StackFrames", "Frames")
    known = read(TEXT, depth=3).blocks
    found = read(bare, depth=3).blocks
    assert {block: sum(parts.values()) for block, parts in found.items()} == {
        block: sum(parts.values()) for block, parts in known.items()
    }
    assert found["single"]["products"] == 1000
    assert set(found["single"]) <= set(parts.PARTS)


def test_sizes_of_types():
    pair = "(s4[2,3]{1,0:T(64,128)(8,1)E(4)S(1)}, /*index=1*/f32[4]{0:T(128)}, pred[8]{0}, bf16[])"
    assert bytes_of(pair) == 3 + 16 + 8 + 2
    assert elements(pair) == 8


def test_a_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        read("nothing", depth=1)
