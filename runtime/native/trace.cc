#include "trace.h"

#include <cstring>
#include <deque>
#include <memory>
#include <vector>

#include "dataset.h"
#include "execute.h"
#include "program.h"
#include "samples.h"

namespace tinytl {

void trace(const Job& job, Events& events) {
  const std::unique_ptr<Program> program = Program::load(job.text("program"), true);
  const Dataset data = Dataset::open(job.text("data"));
  Samples samples(*program, data);
  Execution execution(*program, 1);
  std::vector<TensorToWrite> tensors;
  std::deque<std::vector<uint8_t>> copies;  // stay where they are
  const auto keep = [&](const char* kind, size_t number, DType dtype, const void* from, size_t bytes) {
    const auto* begin = static_cast<const uint8_t*>(from);
    copies.emplace_back(begin, begin + bytes);
    const auto elements = static_cast<int64_t>(bytes / item_size(dtype));
    tensors.push_back({std::string(kind) + "/" + std::to_string(number), dtype, {elements}, copies.back().data(), bytes});
  };
  execution.observe([&](size_t number, const Record& op, const uint8_t* arena) {
    const auto kind = static_cast<Opcode>(op.opcode);
    const Geometry& g = op.geometry;
    const auto size = static_cast<size_t>(int64_t{g.out_height} * g.out_width * g.out_channels);
    const bool fused = kind == Opcode::kPointwise || kind == Opcode::kDepthwise || kind == Opcode::kConv;
    if (op.mask >= 0 && (fused || kind == Opcode::kActivate)) keep("mask", number, DType::kU8, arena + op.mask, (size + 7) / 8);
    if (kind == Opcode::kUpdate) {
      const Part& part = program->parts[static_cast<size_t>(op.weight)];
      keep("gradient", number, op.number ? DType::kBF16 : DType::kF32, arena + op.dw,
           static_cast<size_t>(part.elements) * (op.number ? 2 : 4));
    }
  });
  samples.fill(0, centre_crop(data.stored(), data.input()), 0, execution);
  execution.forward(nullptr);
  const float loss = execution.backward(Sample{});
  keep("loss", 0, DType::kF32, &loss, sizeof loss);
  write_tensors(job.text("out"), tensors, {});
  events.begin("done").number("loss", static_cast<double>(loss));
  events.send();
}

}  // namespace tinytl
