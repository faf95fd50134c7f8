"""The message definition of a model configuration: names, numbers and types of its fields.

It follows Triton's public interface (model_config.proto, 2.73), with message names of our own, in the package PACKAGE.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mmsup.ipc.protobuf.definition import make_file

if TYPE_CHECKING:
    from google.protobuf.descriptor_pb2 import FileDescriptorProto

PACKAGE: Final = "mmsup.config"
FILE_NAME: Final = "mmsup/model_config.proto"
ENUMS: Final = {
    "DataType": "TYPE_INVALID TYPE_BOOL TYPE_UINT8 TYPE_UINT16 TYPE_UINT32 TYPE_UINT64 TYPE_INT8 TYPE_INT16 TYPE_INT32"
    " TYPE_INT64 TYPE_FP16 TYPE_FP32 TYPE_FP64 TYPE_STRING TYPE_BF16",
    "InstanceKind": "KIND_AUTO KIND_GPU KIND_CPU KIND_MODEL",
    "SecondaryKind": "KIND_NVDLA",
    "Format": "FORMAT_NONE FORMAT_NHWC FORMAT_NCHW",
    "BatchInputKind": "BATCH_ELEMENT_COUNT BATCH_ACCUMULATED_ELEMENT_COUNT BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO"
    " BATCH_MAX_ELEMENT_COUNT_AS_SHAPE BATCH_ITEM_SHAPE BATCH_ITEM_SHAPE_FLATTEN",
    "BatchOutputKind": "BATCH_SCATTER_WITH_INPUT_SHAPE",
    "ModelPriority": "PRIORITY_DEFAULT PRIORITY_MAX PRIORITY_MIN",
    "TimeoutAction": "REJECT DELAY",
    "ControlKind": "CONTROL_SEQUENCE_START CONTROL_SEQUENCE_READY CONTROL_SEQUENCE_END CONTROL_SEQUENCE_CORRID",
}
"""Values of each enum, numbered from 0."""

MESSAGES: Final = {
    # NAME: fields as `name number type`; `*` repeated, `|` in a oneof, `{}` a map of strings to that type.
    "RateLimiter": "resources 1 RateLimiterResource*, priority 2 uint32",
    "RateLimiterResource": "name 1 string, global 2 bool, count 3 uint32",
    "SecondaryDevice": "kind 1 SecondaryKind, device_id 2 int64",
    "InstanceGroup": "name 1 string, count 2 int32, gpus 3 int32*, kind 4 InstanceKind, profile 5 string*,"
    " rate_limiter 6 RateLimiter, passive 7 bool, secondary_devices 8 SecondaryDevice*, host_policy 9 string",
    "Reshape": "shape 1 int64*",
    "Input": "name 1 string, data_type 2 DataType, format 3 Format, dims 4 int64*, reshape 5 Reshape,"
    " is_shape_tensor 6 bool, allow_ragged_batch 7 bool, optional 8 bool, is_non_linear_format_io 9 bool",
    "Output": "name 1 string, data_type 2 DataType, dims 3 int64*, label_filename 4 string, reshape 5 Reshape,"
    " is_shape_tensor 6 bool, is_non_linear_format_io 7 bool",
    "BatchInput": "kind 1 BatchInputKind, target_name 2 string*, data_type 3 DataType, source_input 4 string*",
    "BatchOutput": "target_name 1 string*, kind 2 BatchOutputKind, source_input 3 string*",
    "VersionPolicy": "latest 1 Latest|, all 2 All|, specific 3 Specific|",
    "Latest": "num_versions 1 uint32",
    "All": "",
    "Specific": "versions 1 int64*",
    "Optimization": "graph 1 Graph, priority 2 ModelPriority, cuda 3 Cuda, execution_accelerators 4 Accelerators,"
    " input_pinned_memory 5 Switch, output_pinned_memory 6 Switch, gather_kernel_buffer_threshold 7 uint32,"
    " eager_batching 8 bool",
    "Graph": "level 1 int32",
    "Cuda": "graphs 1 bool, busy_wait_events 2 bool, graph_spec 3 GraphSpec*, output_copy_stream 4 bool",
    "GraphSpec": "batch_size 1 int32, input 2 GraphShape{}, graph_lower_bound 3 GraphLowerBound",
    "GraphLowerBound": "batch_size 1 int32, input 2 GraphShape{}",
    "GraphShape": "dim 1 int64*",
    "Accelerators": "gpu_execution_accelerator 1 Accelerator*, cpu_execution_accelerator 2 Accelerator*",
    "Accelerator": "name 1 string, parameters 2 string{}",
    "Switch": "enable 1 bool",
    "QueuePolicy": "timeout_action 1 TimeoutAction, default_timeout_microseconds 2 uint64,"
    " allow_timeout_override 3 bool, max_queue_size 4 uint32",
    "DynamicBatching": "preferred_batch_size 1 int32*, max_queue_delay_microseconds 2 uint64,"
    " preserve_ordering 3 bool, priority_levels 4 uint64, default_priority_level 5 uint64,"
    " default_queue_policy 6 QueuePolicy, priority_queue_policy 7 QueuePolicy{uint64}",
    "SequenceBatching": "max_sequence_idle_microseconds 1 uint64, control_input 2 ControlInput*, direct 3 Direct|,"
    " oldest 4 Oldest|, state 5 State*, iterative_sequence 6 bool",
    "ControlInput": "name 1 string, control 2 Control*",
    "Control": "kind 1 ControlKind, int32_false_true 2 int32*, fp32_false_true 3 float*, data_type 4 DataType,"
    " bool_false_true 5 bool*",
    "State": "input_name 1 string, output_name 2 string, data_type 3 DataType, dims 4 int64*,"
    " initial_state 5 InitialState*, use_same_buffer_for_input_output 6 bool, use_growable_memory 7 bool",
    "InitialState": "data_type 1 DataType, dims 2 int64*, zero_data 3 bool|, data_file 4 string|, name 5 string",
    "Direct": "max_queue_delay_microseconds 1 uint64, minimum_slot_utilization 2 float",
    "Oldest": "max_candidate_sequences 1 int32, preferred_batch_size 2 int32*, max_queue_delay_microseconds 3 uint64,"
    " preserve_ordering 4 bool",
    "Ensembling": "step 1 Step*, max_inflight_requests 2 uint32",
    "Step": "model_name 1 string, model_version 2 int64, input_map 3 string{}, output_map 4 string{},"
    " model_namespace 5 string",
    "Parameter": "string_value 1 string",
    "Warmup": "name 1 string, batch_size 2 uint32, inputs 3 WarmupInput{}, count 4 uint32",
    "WarmupInput": "data_type 1 DataType, dims 2 int64*, zero_data 3 bool|, random_data 4 bool|,"
    " input_data_file 5 string|",
    "Operations": "op_library_filename 1 string*",
    "TransactionPolicy": "decoupled 1 bool",
    "RepositoryAgents": "agents 1 Accelerator*",
    "Metrics": "metric_control 1 MetricControl*",
    "MetricControl": "metric_identifier 1 MetricIdentifier, histogram_options 2 Histogram|",
    "MetricIdentifier": "family 1 string",
    "Histogram": "buckets 1 double*",
    "ModelConfig": "name 1 string, platform 2 string, version_policy 3 VersionPolicy, max_batch_size 4 int32,"
    " input 5 Input*, output 6 Output*, instance_group 7 InstanceGroup*, default_model_filename 8 string,"
    " cc_model_filenames 9 string{}, metric_tags 10 string{}, dynamic_batching 11 DynamicBatching|,"
    " optimization 12 Optimization, sequence_batching 13 SequenceBatching|, parameters 14 Parameter{},"
    " ensemble_scheduling 15 Ensembling|, model_warmup 16 Warmup*, backend 17 string, model_operations 18 Operations,"
    " model_transaction_policy 19 TransactionPolicy, batch_input 20 BatchInput*, batch_output 21 BatchOutput*,"
    " model_repository_agents 23 RepositoryAgents, response_cache 24 Switch, runtime 25 string,"
    " model_metrics 26 Metrics",
}


def model_config_file() -> FileDescriptorProto:
    """The file that defines `ModelConfig`."""
    return make_file(FILE_NAME, PACKAGE, MESSAGES, ENUMS)
