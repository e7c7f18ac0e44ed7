"""Public names, flags and environment variables of Horovod 0.28.1, read in its source."""

_RANKS = "rank size local_rank local_size cross_rank cross_size"
_BUILT = (
    "mpi_threads_supported mpi_enabled mpi_built gloo_enabled gloo_built nccl_built ddl_built "
    "ccl_built cuda_built rocm_built"
)
_LIFE = "init shutdown is_initialized start_timeline stop_timeline elastic"

MODULES = {
    "horovod": "run",
    "horovod.tensorflow": f"""{_LIFE} {_RANKS} {_BUILT} is_homogeneous
        rank_op local_rank_op size_op local_size_op process_set_included_op
        allreduce grouped_allreduce allgather grouped_allgather broadcast broadcast_ alltoall
        reducescatter grouped_reducescatter join
        broadcast_variables broadcast_object broadcast_object_fn allgather_object
        broadcast_global_variables BroadcastGlobalVariablesHook
        Average Sum Adasum Min Max Product Compression
        ProcessSet global_process_set add_process_set remove_process_set
        DistributedOptimizer DistributedGradientTape PartialDistributedGradientTape
        SyncBatchNormalization LocalGradientAggregationHelper
        check_extension check_num_rank_power_of_2 gpu_available split_list
        handle_average_backwards_compatibility refs_to_vars vars_to_refs""",
    "horovod.keras": f"""{_LIFE} {_RANKS} {_BUILT} callbacks
        allreduce allgather broadcast reducescatter broadcast_global_variables
        Average Sum Adasum Compression
        ProcessSet global_process_set add_process_set remove_process_set
        DistributedOptimizer PartialDistributedOptimizer load_model
        is_version_greater_equal_than""",
    "horovod.keras.callbacks": """BroadcastGlobalVariablesCallback MetricAverageCallback
        LearningRateWarmupCallback LearningRateScheduleCallback BestModelCheckpoint
        is_version_greater_equal_than""",
    "horovod.keras.elastic": """run KerasState TensorFlowKerasState CommitStateCallback
        UpdateBatchStateCallback UpdateEpochStateCallback""",
    "horovod.tensorflow.elastic": """run run_fn TensorFlowKerasState TensorFlowState ObjectState
        HorovodInternalError broadcast_object broadcast_object_fn broadcast_variables init rank
        shutdown""",
}
"""By module, what it defines or imports from Horovod. `horovod.keras` is both Keras front ends."""

SUBMODULES = """
    tensorflow.mpi_ops tensorflow.compression tensorflow.functions tensorflow.util
    tensorflow.sync_batch_norm tensorflow.gradient_aggregation
    tensorflow.gradient_aggregation_eager tensorflow.data
    common.basics common.elastic common.exceptions common.process_sets common.util
    runner runner.launch runner.util.threads runner.common.util.env
    _keras data torch mxnet spark ray
    spark.keras spark.common.store spark.common.backend spark.common.util
    spark.torch spark.lightning
"""
"""Further modules that scripts and tests import, and whole packages that tfddl isn't for."""

FLAGS = """
    -v --version -np --num-proc -cb --check-build --disable-cache --start-timeout
    --network-interfaces --network-interface --output-filename --verbose --config-file
    -p --ssh-port -i --ssh-identity-file
    --fusion-threshold-mb --cycle-time-ms --cache-capacity
    --hierarchical-allreduce --no-hierarchical-allreduce
    --hierarchical-allgather --no-hierarchical-allgather --torus-allreduce --no-torus-allreduce
    --autotune --no-autotune --autotune-log-file --autotune-warmup-samples
    --autotune-steps-per-sample --autotune-bayes-opt-max-samples
    --autotune-gaussian-process-noise
    --min-np --min-num-proc --max-np --max-num-proc --slots-per-host --elastic-timeout
    --reset-limit --blacklist-cooldown-range
    --timeline-filename --timeline-mark-cycles --no-timeline-mark-cycles
    --stall-check --no-stall-check --stall-check-warning-time-seconds
    --stall-check-shutdown-time-seconds
    --mpi-threads-disable --no-mpi-threads-disable --mpi-args --tcp --binding-args
    --num-nccl-streams --thread-affinity --gloo-timeout-seconds
    --log-level --log-with-timestamp --log-without-timestamp --log-hide-timestamp
    --no-log-hide-timestamp -prefix-timestamp --prefix-output-with-timestamp
    -H --hosts -hostfile --hostfile --host-discovery-script --gloo --mpi --jsrun
"""

VARIABLES = """
    RANK SIZE LOCAL_RANK LOCAL_SIZE CROSS_RANK CROSS_SIZE HOSTNAME
    STALL_CHECK_DISABLE STALL_CHECK_TIME_SECONDS STALL_SHUTDOWN_TIME_SECONDS
    TIMELINE TIMELINE_MARK_CYCLES DYNAMIC_PROCESS_SETS
    FUSION_THRESHOLD CYCLE_TIME CACHE_CAPACITY HIERARCHICAL_ALLREDUCE HIERARCHICAL_ALLGATHER
    TORUS_ALLREDUCE BATCH_D2D_MEMCOPIES DISABLE_GROUP_FUSION ADASUM_MPI_CHUNK_SIZE
    ENABLE_ASYNC_COMPLETION
    AUTOTUNE AUTOTUNE_LOG AUTOTUNE_WARMUP_SAMPLES AUTOTUNE_STEPS_PER_SAMPLE
    AUTOTUNE_BAYES_OPT_MAX_SAMPLES AUTOTUNE_GAUSSIAN_PROCESS_NOISE
    CONTROLLER CPU_OPERATIONS MPI_THREADS_DISABLE NUM_NCCL_STREAMS THREAD_AFFINITY
    GLOO_IFACE GLOO_RENDEZVOUS_ADDR GLOO_RENDEZVOUS_PORT GLOO_TIMEOUT_SECONDS CCL_CACHE
    ELASTIC ELASTIC_TIMEOUT START_TIMEOUT SECRET_KEY
    LOG_LEVEL LOG_HIDE_TIME ENABLE_XLA_OPS DISABLE_NVTX_RANGES
"""
"""Those read when a job runs (those of the build aren't here), without HOROVOD_ in front."""
