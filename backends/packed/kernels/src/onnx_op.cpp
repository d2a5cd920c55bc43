// PackedLinear as an operator of ONNX Runtime, in its threads: what a written model.onnx asks for.
//
// Found by its symbol RegisterCustomOps (SessionOptions.register_custom_ops_library). Inputs: x
// float32 [..., in], then initialisers in the layout of docs/formats/packed.md: values, mask and,
// where ragged, offsets (not read) and starts. Attributes: kind, values, shape; n and m where N:M.
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "core.h"
#include "onnxruntime_c_api.h"

namespace se {
namespace {

constexpr uint32_t kApi = 20; // the oldest ONNX Runtime that model.onnx is written for: 1.20
constexpr size_t kMostRank = 8;
enum Input { kX, kValues, kMask, kOffsets, kStarts, kInputs };

struct Kernel {
  const OrtApi *api;
  void *linear;
  int64_t rows, cols;
};

struct Shape {
  ONNXTensorElementDataType type;
  size_t rank;
  int64_t dims[kMostRank], count;
};

OrtStatus *refused(const OrtApi *api, const char *why) {
  return api->CreateStatus(ORT_INVALID_ARGUMENT, why);
}

OrtStatus *shape_of(const OrtApi *api, const OrtValue *value, Shape *shape) {
  OrtTensorTypeAndShapeInfo *info = nullptr;
  if (OrtStatus *failed = api->GetTensorTypeAndShape(value, &info)) return failed;
  size_t count = 0;
  OrtStatus *failed = api->GetTensorElementType(info, &shape->type);
  if (!failed) failed = api->GetDimensionsCount(info, &shape->rank);
  if (!failed && shape->rank > kMostRank) failed = refused(api, "a tensor of more than 8 axes");
  if (!failed) failed = api->GetDimensions(info, shape->dims, shape->rank);
  if (!failed) failed = api->GetTensorShapeElementCount(info, &count);
  shape->count = (int64_t)count;
  api->ReleaseTensorTypeAndShapeInfo(info);
  return failed;
}

// An initialiser of `type`; `count` is its number of elements.
OrtStatus *constant(const OrtApi *api, const OrtKernelInfo *info, Input input,
                    ONNXTensorElementDataType type, const void **data, int64_t *count) {
  int is_constant = 0;
  const OrtValue *value = nullptr;
  if (OrtStatus *failed =
          api->KernelInfoGetConstantInput_tensor(info, input, &is_constant, &value))
    return failed;
  if (!is_constant || !value) return refused(api, "PackedLinear: a part is no initialiser");
  Shape shape = {};
  if (OrtStatus *failed = shape_of(api, value, &shape)) return failed;
  if (shape.type != type) return refused(api, "PackedLinear: a part of another type");
  *count = shape.count;
  void *found = nullptr; // only ever read
  OrtStatus *failed = api->GetTensorMutableData(const_cast<OrtValue *>(value), &found);
  *data = found;
  return failed;
}

// Which of `names` an attribute holds; refuses any other.
OrtStatus *choice(const OrtApi *api, const OrtKernelInfo *info, const char *attribute,
                  const char *const *names, int32_t count, int32_t *chosen) {
  char text[16];
  size_t size = sizeof text;
  if (OrtStatus *failed = api->KernelInfoGetAttribute_string(info, attribute, text, &size))
    return failed;
  for (int32_t i = 0; i < count; ++i)
    if (strncmp(text, names[i], sizeof text) == 0) {
      *chosen = i;
      return nullptr;
    }
  return refused(api, "PackedLinear: attribute kind or values holds an unknown name");
}

OrtStatus *whole(const OrtApi *api, const OrtKernelInfo *info, const char *attribute,
                 int32_t *found) {
  int64_t wide = 0;
  OrtStatus *failed = api->KernelInfoGetAttribute_int64(info, attribute, &wide);
  *found = wide < 0 || wide > 64 ? -1 : (int32_t)wide; // which no N:M is
  return failed;
}

OrtStatus *attributes(const OrtApi *api, const OrtKernelInfo *info, se_desc *d) {
  static const char *const kinds[] = {"ragged", "nm"}, *const types[] = {"bf16", "fp16", "fp32"};
  if (OrtStatus *failed = choice(api, info, "kind", kinds, 2, &d->kind)) return failed;
  if (OrtStatus *failed = choice(api, info, "values", types, 3, &d->values_type)) return failed;
  int64_t shape[2];
  size_t size = 2;
  if (OrtStatus *failed = api->KernelInfoGetAttributeArray_int64(info, "shape", shape, &size))
    return failed;
  if (size != 2) return refused(api, "PackedLinear: shape is not [out, in]");
  d->rows = shape[0], d->cols = shape[1];
  if (d->kind != SE_NM) return nullptr;
  if (OrtStatus *failed = whole(api, info, "n", &d->n)) return failed;
  return whole(api, info, "m", &d->m);
}

OrtStatus *parts(const OrtApi *api, const OrtKernelInfo *info, se_desc *d) {
  static const ONNXTensorElementDataType types[] = {ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16,
                                                    ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
                                                    ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT};
  const void *data = nullptr;
  int64_t count = 0;
  if (OrtStatus *failed = constant(api, info, kValues, types[d->values_type], &data, &count))
    return failed;
  d->values = (const uint8_t *)data, d->values_bytes = bytes_of(d->values_type, count);
  if (OrtStatus *failed =
          constant(api, info, kMask, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, &data, &count))
    return failed;
  d->mask = (const uint8_t *)data, d->mask_bytes = count;
  if (d->kind == SE_NM) return nullptr;
  OrtStatus *failed =
      constant(api, info, kStarts, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, &data, &count);
  d->starts = (const int64_t *)data, d->starts_count = count;
  return failed;
}

// What SPARSE_EXPORT_ISA names, or the best that runs here; -1 for a name that does not.
int32_t instruction_set() {
  static const char *const names[] = {"portable", "avx2", "avx512", "avx512-vnni", "avx512-bf16"};
  static_assert(sizeof names / sizeof *names == SE_ISAS, "a name for each instruction set");
  const char *wanted = getenv("SPARSE_EXPORT_ISA");
  for (int32_t isa = SE_ISAS - 1; isa >= 0; --isa)
    if (se_isa_runs(isa) && (!wanted || !*wanted || strcmp(wanted, names[isa]) == 0)) return isa;
  return -1;
}

OrtStatus *ORT_API_CALL create(const OrtCustomOp *, const OrtApi *api, const OrtKernelInfo *info,
                               void **kernel) {
  se_desc desc = {};
  if (OrtStatus *failed = attributes(api, info, &desc)) return failed;
  if (OrtStatus *failed = parts(api, info, &desc)) return failed;
  const int32_t isa = instruction_set();
  if (isa < 0) return refused(api, "SPARSE_EXPORT_ISA names no instruction set that runs here");
  Kernel *made = (Kernel *)malloc(sizeof(Kernel));
  void *linear = nullptr;
  const int32_t status = made ? se_create(&desc, isa, &linear) : SE_NO_MEMORY;
  if (status != SE_OK) {
    free(made);
    if (status == SE_NO_MEMORY) return api->CreateStatus(ORT_FAIL, "no memory for a linear");
    return refused(api, "PackedLinear: parts that do not belong to their attributes");
  }
  *made = {api, linear, desc.rows, desc.cols};
  *kernel = made;
  return nullptr;
}

void ORT_API_CALL destroy(void *kernel) {
  se_destroy(((Kernel *)kernel)->linear);
  free(kernel);
}

// The threads of the session that runs the node.
struct Session {
  const OrtApi *api;
  OrtKernelContext *context;
  OrtStatus *failed;
};

struct Parts {
  Task task;
  void *context;
};

void one_part(void *data, size_t part) {
  const Parts &parts = *(const Parts *)data;
  parts.task(parts.context, (int64_t)part);
}

void share(void *self, int64_t count, Task task, void *context) {
  Session &session = *(Session *)self;
  Parts parts = {task, context};
  OrtStatus *failed = session.api->KernelContext_ParallelFor(session.context, one_part,
                                                             (size_t)count, 0, &parts);
  if (!session.failed)
    session.failed = failed;
  else if (failed)
    session.api->ReleaseStatus(failed);
}

OrtStatus *multiply(const Kernel &k, OrtKernelContext *context, const float *x, float *y,
                    int64_t m) {
  Session session = {k.api, context, nullptr};
  const Threads threads = {share, &session};
  const Threads *before = borrow(&threads);
  const int32_t status =
      se_run_one(k.linear, nullptr, x, SE_X_F32, m, k.cols, y, k.rows, SE_X_F32, SE_ACT32);
  borrow(before);
  if (!session.failed && status != SE_OK)
    session.failed = k.api->CreateStatus(ORT_FAIL, "no memory for activations");
  return session.failed;
}

OrtStatus *ORT_API_CALL compute(void *kernel, OrtKernelContext *context) {
  const Kernel &k = *(const Kernel *)kernel;
  const OrtValue *x = nullptr;
  if (OrtStatus *failed = k.api->KernelContext_GetInput(context, kX, &x)) return failed;
  Shape shape = {};
  if (OrtStatus *failed = shape_of(k.api, x, &shape)) return failed;
  if (shape.rank < 1 || shape.dims[shape.rank - 1] != k.cols)
    return refused(k.api, "PackedLinear: the last axis of x is not that of the weight");
  shape.dims[shape.rank - 1] = k.rows;
  OrtValue *y = nullptr;
  if (OrtStatus *failed =
          k.api->KernelContext_GetOutput(context, 0, shape.dims, shape.rank, &y))
    return failed;
  void *from = nullptr, *to = nullptr;
  if (OrtStatus *failed = k.api->GetTensorMutableData(const_cast<OrtValue *>(x), &from))
    return failed;
  if (OrtStatus *failed = k.api->GetTensorMutableData(y, &to)) return failed;
  return multiply(k, context, (const float *)from, (float *)to, shape.count / k.cols);
}

ONNXTensorElementDataType ORT_API_CALL input_type(const OrtCustomOp *, size_t index) {
  static const ONNXTensorElementDataType types[kInputs] = {
      ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED /* any */,
      ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32,
      ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64};
  return types[index];
}

OrtCustomOpInputOutputCharacteristic ORT_API_CALL input_need(const OrtCustomOp *, size_t index) {
  return index < kOffsets ? INPUT_OUTPUT_REQUIRED : INPUT_OUTPUT_OPTIONAL;
}

OrtCustomOp packed_linear() {
  OrtCustomOp op = {};
  op.version = kApi;
  op.GetName = [](const OrtCustomOp *) { return "PackedLinear"; };
  op.GetExecutionProviderType = [](const OrtCustomOp *) -> const char * { return nullptr; };
  op.GetInputType = input_type;
  op.GetInputTypeCount = [](const OrtCustomOp *) { return (size_t)kInputs; };
  op.GetInputCharacteristic = input_need;
  op.GetInputMemoryType = [](const OrtCustomOp *, size_t) { return OrtMemTypeDefault; };
  op.GetOutputType = [](const OrtCustomOp *, size_t) {
    return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  };
  op.GetOutputTypeCount = [](const OrtCustomOp *) { return (size_t)1; };
  op.GetOutputCharacteristic = [](const OrtCustomOp *, size_t) { return INPUT_OUTPUT_REQUIRED; };
  op.GetStartVersion = [](const OrtCustomOp *) { return SE_OPERATORS; };
  op.GetEndVersion = [](const OrtCustomOp *) { return SE_OPERATORS; };
  op.CreateKernelV2 = create;
  op.KernelComputeV2 = compute;
  op.KernelDestroy = destroy;
  return op;
}

const OrtCustomOp kPackedLinear = packed_linear();

} // namespace
} // namespace se

extern "C" SE_API OrtStatus *RegisterCustomOps(OrtSessionOptions *options,
                                               const OrtApiBase *base) {
  const OrtApi *api = base->GetApi(se::kApi);
  if (!api) return base->GetApi(1)->CreateStatus(ORT_FAIL, "ONNX Runtime 1.20 is needed, or later");
  // Sessions refer to a domain as long as they live, and the options do not tell when they end: it
  // stays, one for each library of ONNX Runtime that asks (in one process there is hardly a second).
  static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
  static const OrtApi *asked = nullptr;
  static OrtCustomOpDomain *domain = nullptr;
  OrtStatus *failed = nullptr;
  pthread_mutex_lock(&lock);
  if (asked != api) {
    OrtCustomOpDomain *made = nullptr;
    failed = api->CreateCustomOpDomain("sparse_export", &made);
    if (!failed) failed = api->CustomOpDomain_Add(made, &se::kPackedLinear);
    if (!failed) asked = api, domain = made;
  }
  if (!failed) failed = api->AddCustomOpDomain(options, domain);
  pthread_mutex_unlock(&lock);
  return failed;
}
