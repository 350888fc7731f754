# SPDX-License-Identifier: Apache-2.0
"""The operators that were released, as text: the frozen half of bindings/schema.cpp.

A library whose operators differ from this list does not import (_library.py), and tests compare the two. A schema that
stands here may only grow: new arguments come last and have defaults. Must not go here: anything but data.
"""

# Operators of tensors, registered for the dispatch keys CPU and CUDA.
TENSOR_OPERATORS = (
    "scaled_mm(Tensor a, Tensor b, Tensor scale_a, Tensor scale_b, Tensor? bias, ScalarType out_dtype, *, "
    "bool fast_accumulation=True, bool deterministic=False) -> Tensor",
    "scaled_mm.out(Tensor a, Tensor b, Tensor scale_a, Tensor scale_b, Tensor? bias, *, "
    "bool fast_accumulation=True, bool deterministic=False, Tensor(a!) out) -> ()",
    "scaled_mm_azp(Tensor a, Tensor b, Tensor scale_a, Tensor scale_b, Tensor azp_adj, Tensor? azp, Tensor? bias, "
    "ScalarType out_dtype) -> Tensor",
    "scaled_mm_azp.out(Tensor a, Tensor b, Tensor scale_a, Tensor scale_b, Tensor azp_adj, Tensor? azp, Tensor? bias, "
    "*, Tensor(a!) out) -> ()",
    "_scaled_mm_row(Tensor a, Tensor b, Tensor scale_a, Tensor scale_b, Tensor? azp_adj, Tensor? azp, Tensor? bias, "
    "ScalarType out_dtype, bool fast_accumulation, bool deterministic, int row, bool overlap=True) -> Tensor",
    "quantize_per_tensor(Tensor x, ScalarType dtype) -> (Tensor q, Tensor scale)",
    "quantize_per_tensor.out(Tensor x, *, Tensor(a!) out_q, Tensor(b!) out_scale) -> ()",
    "quantize_static(Tensor x, Tensor scale, ScalarType dtype) -> Tensor",
    "quantize_static.out(Tensor x, Tensor scale, *, Tensor(a!) out_q) -> ()",
    "quantize_per_token(Tensor x, ScalarType dtype, Tensor? scale_upper_bound) -> (Tensor q, Tensor scale)",
    "quantize_per_token.out(Tensor x, Tensor? scale_upper_bound, *, Tensor(a!) out_q, Tensor(b!) out_scale) -> ()",
    "quantize_per_token_asymmetric(Tensor x) -> (Tensor q, Tensor scale, Tensor azp)",
    "quantize_per_token_asymmetric.out(Tensor x, *, Tensor(a!) out_q, Tensor(b!) out_scale, Tensor(c!) out_azp) -> ()",
    "quantize_per_group(Tensor x, int group_size, ScalarType dtype, bool column_major_scales, "
    "bool power_of_two_scales) -> (Tensor q, Tensor scale)",
    "quantize_per_group.out(Tensor x, int group_size, bool column_major_scales, bool power_of_two_scales, *, "
    "Tensor(a!) out_q, Tensor(b!) out_scale) -> ()",
    "quantize_per_block(Tensor w, int block_n, int block_k, ScalarType dtype) -> (Tensor q, Tensor scale)",
    "quantize_per_block.out(Tensor w, int block_n, int block_k, *, Tensor(a!) out_q, Tensor(b!) out_scale) -> ()",
    "activate_and_quantize(Tensor x, int activation, bool gated, int group_size, ScalarType dtype) "
    "-> (Tensor q, Tensor scale)",
    "activate_and_quantize.out(Tensor x, int activation, bool gated, int group_size, *, "
    "Tensor(a!) out_q, Tensor(b!) out_scale) -> ()",
    "rms_norm_quantize(Tensor x, Tensor weight, float eps, int group_size, ScalarType dtype, Tensor(a!)? residual) "
    "-> (Tensor q, Tensor scale)",
    "rms_norm_quantize.out(Tensor x, Tensor weight, float eps, int group_size, Tensor(a!)? residual, *, "
    "Tensor(b!) out_q, Tensor(c!) out_scale) -> ()",
    "quantized_linear(Tensor x, Tensor weight, Tensor weight_scale, Tensor? input_scale=None, Tensor? azp_adj=None, "
    "Tensor? bias=None, *, bool fast_accumulation=True, bool deterministic=False) -> Tensor",
    "cutlass_scaled_mm(Tensor! out, Tensor a, Tensor b, Tensor a_scales, Tensor b_scales, Tensor? bias) -> ()",
    "cutlass_scaled_mm_azp(Tensor! out, Tensor a, Tensor b, Tensor a_scales, Tensor b_scales, Tensor azp_adj, "
    "Tensor? azp, Tensor? bias) -> ()",
    "permute_cols(Tensor A, Tensor perm) -> Tensor",
    "per_token_group_fp8_quant(Tensor input, Tensor! output_q, Tensor! output_s, int group_size, float eps, "
    "float fp8_min, float fp8_max, bool scale_ue8m0, bool dummy_is_scale_transposed, bool dummy_is_tma_aligned) -> ()",
    "per_token_group_fp8_quant_packed(Tensor input, Tensor! output_q, Tensor! output_s_packed, int group_size, "
    "float eps, float fp8_min, float fp8_max) -> ()",
    "per_token_group_quant_int8(Tensor input, Tensor! output_q, Tensor! output_s, int group_size, float eps, "
    "float int8_min, float int8_max) -> ()",
    "moe_route(Tensor topk_ids, int num_local_experts, Tensor? expert_map=None) -> (Tensor expert_offsets, Tensor "
    "source_row, Tensor slot)",
    "grouped_scaled_mm(Tensor a, Tensor b, Tensor scale_a, Tensor scale_b, Tensor expert_offsets, ScalarType "
    "out_dtype, *, bool fast_accumulation=True, bool deterministic=False) -> Tensor",
    "grouped_scaled_mm.out(Tensor a, Tensor b, Tensor scale_a, Tensor scale_b, Tensor expert_offsets, *, bool "
    "fast_accumulation=True, bool deterministic=False, Tensor(a!) out) -> ()",
    "grouped_scaled_mm_masked(Tensor a, Tensor b, Tensor scale_a, Tensor scale_b, Tensor rows_per_expert, ScalarType "
    "out_dtype, *, bool fast_accumulation=True, bool deterministic=False) -> Tensor",
    "grouped_scaled_mm_masked.out(Tensor a, Tensor b, Tensor scale_a, Tensor scale_b, Tensor rows_per_expert, *, bool "
    "fast_accumulation=True, bool deterministic=False, Tensor(a!) out) -> ()",
    "moe_gather_quantize(Tensor x, Tensor source_row, Tensor? scale, Tensor? row_weights, int group_size, ScalarType "
    "dtype) -> (Tensor q, Tensor scale)",
    "moe_combine(Tensor y, Tensor slot, Tensor topk_weights, ScalarType out_dtype) -> Tensor",
    "fused_moe(Tensor x, Tensor w13, Tensor w2, Tensor w13_scale, Tensor w2_scale, Tensor topk_weights, Tensor "
    "topk_ids, Tensor? expert_map=None, Tensor? a1_scale=None, Tensor? a2_scale=None, int activation=0, bool "
    "apply_router_weight_on_input=False, *, bool fast_accumulation=True, bool deterministic=False) -> Tensor",
    "cutlass_moe_mm(Tensor! out_tensors, Tensor a_tensors, Tensor b_tensors, Tensor a_scales, Tensor b_scales, Tensor "
    "expert_offsets, Tensor problem_sizes, Tensor a_strides, Tensor b_strides, Tensor c_strides, bool per_act_token, "
    "bool per_out_ch) -> ()",
    "get_cutlass_moe_mm_data(Tensor topk_ids, Tensor! expert_offsets, Tensor! problem_sizes1, Tensor! problem_sizes2, "
    "Tensor! input_permutation, Tensor! output_permutation, int num_experts, int n, int k, Tensor? "
    "blockscale_offsets, bool is_gated) -> ()",
    "get_cutlass_moe_mm_problem_sizes_from_expert_offsets(Tensor expert_first_token_offset, Tensor! problem_sizes1, "
    "Tensor! problem_sizes2, int n, int k, bool swap_ab) -> ()",
    "get_cutlass_batched_moe_mm_data(Tensor! expert_offsets, Tensor! problem_sizes1, Tensor! problem_sizes2, Tensor "
    "expert_num_tokens, int num_local_experts, int padded_m, int n, int k) -> ()",
)

# Capability queries, registered for the dispatch key CompositeExplicitAutograd.
QUERIES = (
    "cutlass_scaled_mm_supports_fp8(int cuda_device_capability) -> bool",
    "cutlass_group_gemm_supported(int cuda_device_capability) -> bool",
    "cutlass_scaled_mm_supports_block_fp8(int cuda_device_capability) -> bool",
)
