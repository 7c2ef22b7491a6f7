// Fits a classifier to the features and labels in a file, which of several labels each sample has where they are bytes, and
// writes it into another: FEATURES CLASSES THREADS SMOOTHING ROOM OUT. Where the file has rows "before", biases behind the
// weights, it is pulled towards these; samples behind the first "own" are kept ones, with the share "keep"; or, without a
// share, the rows are aligned with the first, which have no labels.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "../../../runtime/native/kernels/parallel.h"
#include "../../../runtime/native/learning/aligned.h"
#include "../../../runtime/native/learning/discriminant.h"
#include "../../../runtime/native/learning/label_regression.h"
#include "../../../runtime/native/learning/linear.h"
#include "../../../runtime/native/learning/pulled.h"
#include "../../../runtime/native/safetensors.h"

int main(int count, char** words) {
  using namespace tinytl;
  if (count != 7) return 2;
  try {
    start_threads(std::atoi(words[3]));
    const TensorFile file = TensorFile::open(words[1]);
    const TensorEntry& features = file.entry("features");
    const int64_t samples = features.shape[0], length = features.shape[1];
    RowFile rows(".", length);
    std::vector<float> row(static_cast<size_t>(length));
    for (int64_t i = 0; i < samples; ++i) {
      file.read_part(features, static_cast<uint64_t>(4 * i * length), static_cast<size_t>(4 * length), row.data());
      rows.append(row.data());
    }
    const int classes = std::atoi(words[2]);
    const bool multi_label = file.entry("labels").dtype == DType::kU8;
    std::vector<int32_t> labels(static_cast<size_t>(samples));
    std::vector<uint8_t> values(multi_label ? labels.size() * static_cast<size_t>(classes) : 0);
    file.read(file.entry("labels"), multi_label ? static_cast<void*>(values.data()) : labels.data());
    const Marks marks{values, static_cast<size_t>(classes)};
    Linear linear{length, {}, {}};
    const Terms terms{length, std::atof(words[4]), std::atoll(words[5]), "."};
    const TakeWeight take = [&](size_t label, const float* row, float shift) {
      if (label != linear.bias.size()) fail(kInternal, "Classes come in another order.");
      linear.weight.insert(linear.weight.end(), row, row + length);
      linear.bias.push_back(shift);
    };
    LinearFit found;
    if (const TensorEntry* before = file.find("before")) {
      RowFile towards(".", length + 1);
      std::vector<float> own(static_cast<size_t>(length) + 1);
      for (int c = 0; c < classes; ++c) {
        file.read_part(*before, sizeof(float) * own.size() * static_cast<size_t>(c), sizeof(float) * own.size(), own.data());
        towards.append(own.data());
      }
      Kept kept;
      if (const TensorEntry* first = file.find("own")) {
        int32_t own = 0;
        file.read(*first, &own);
        kept.count = samples - own;
        labels.erase(labels.begin(), labels.end() - (file.find("keep") ? samples : kept.count));
      }
      if (const TensorEntry* share = file.find("keep")) {
        file.read(*share, &kept.share);
      } else if (kept.count > 0) {
        const Aligned aligned = align(rows, labels, read_linear(towards, length), terms);
        const double said[] = {aligned.share,         aligned.sure_before,    aligned.sure,
                               aligned.agreed_before, aligned.agreed, aligned.helps() ? 1.0 : 0.0};
        write_tensors(words[6],
                      {{"said", DType::kF64, {6}, said, sizeof said},
                       {"off", DType::kF64, {classes}, aligned.off.data(), 8 * aligned.off.size()}},
                      {});
        return 0;
      }
      found = fit_pulled(rows, {&labels, multi_label ? &marks : nullptr}, read_linear(towards, length), kept, terms, take);
    } else {
      found = multi_label ? fit_labels(rows, marks, terms, take) : fit_discriminant(rows, labels, classes, terms, take);
    }
    const Seen seen = multi_label ? look(linear, rows, marks) : look(linear, rows, labels, 0);
    const double said[] = {std::isnan(found.pull) ? found.shrinkage : found.pull, found.loss, found.accuracy,
                           static_cast<double>(found.left_out), seen.losses, static_cast<double>(seen.correct), seen.low,
                           seen.high, found.kept_before, found.kept};
    std::vector<float> answers;  // how sure each is, below zero where it is wrong
    for (const Sure& answer : found.answers) answers.push_back(answer.right ? answer.probability : -answer.probability);
    write_tensors(words[6],
                  {{"said", DType::kF64, {10}, said, sizeof said},
                   {"weight", DType::kF32, {classes, length}, linear.weight.data(), 4 * linear.weight.size()},
                   {"bias", DType::kF32, {classes}, linear.bias.data(), 4 * linear.bias.size()},
                   {"answers", DType::kF32, {static_cast<int64_t>(answers.size())}, answers.data(), 4 * answers.size()}},
                  {});
    return 0;
  } catch (const Failure& failure) {
    std::fprintf(stderr, "%s\n", failure.message.c_str());
    return failure.exit_code;
  }
}
