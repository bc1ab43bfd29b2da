#include "reports.h"

#include <cstdio>
#include <mutex>

#include "block.h"
#include "memory_map.h"

namespace fastdl::emulator {
namespace {

constexpr size_t kMost = 100;

struct Happened {
  Event event;
  uint3 block, thread;
  bool in_thread;
  int64_t times;
};

std::mutex mutex;
std::vector<Happened> happened;  // in this launch
std::vector<Report> reports;
bool printing = true;

std::string index_text(uint3 i) {
  return "(" + std::to_string(i.x) + ", " + std::to_string(i.y) + ", " + std::to_string(i.z) + ")";
}

// The path in the project, of one that the compiler was given
std::string short_path(const std::string& path) {
  for (const char* top : {"/tests/", "/csrc/"}) {
    if (const size_t at = path.rfind(top); at != std::string::npos) return path.substr(at + 1);
  }
  return path;
}

// The kernel's line: not that of a function that stands in for CUDA's.
Frame kernel_frame(const std::vector<Frame>& frames) {
  for (const Frame& frame : frames) {
    if (frame.file.find("cuda_emulator/include/") != std::string::npos) continue;
    return {frame.function, short_path(frame.file), frame.line};
  }
  return frames.empty() ? Frame{"", "??", 0} : frames.back();
}

// "void fastdl::(anonymous namespace)::copy<4>(float*)" -> "fastdl::copy<4>"
std::string short_name(std::string name) {
  const std::string anonymous = "(anonymous namespace)::";
  for (size_t at; (at = name.find(anonymous)) != std::string::npos;) {
    name.erase(at, anonymous.size());
  }
  if (name.starts_with("void ")) name.erase(0, 5);
  int depth = 0;
  for (size_t i = 0; i < name.size(); ++i) {
    depth += name[i] == '<' ? 1 : name[i] == '>' ? -1 : 0;
    if (name[i] == '(' && depth == 0) name.resize(i);
  }
  return name;
}

// Where a call was that returns to `pc`
const void* call_at(const void* pc) { return static_cast<const char*>(pc) - 1; }

Report resolved(const Launch& launch, const Happened& entry) {
  const Event& event = entry.event;
  std::vector<const void*> addresses{launch.kernel};
  if (entry.in_thread && event.pc) addresses.push_back(call_at(event.pc));
  if (event.other.pc) addresses.push_back(call_at(event.other.pc));
  const auto found = find_sources(addresses);
  Report report{event.kind, "?", "", 0, entry.times, ""};
  if (!found[0].empty()) report.kernel = short_name(found[0].back().function);
  Frame frame = kernel_frame(entry.in_thread && event.pc ? found[1] : found[0]);
  if (event.file) frame = {"", short_path(event.file), event.line};
  report.file = frame.file;
  report.line = frame.line;
  report.text = std::string(kind_name(event.kind)) + " in " + report.kernel;
  if (entry.in_thread) {
    report.text += ", block " + index_text(entry.block) + ", thread " + index_text(entry.thread);
  }
  report.text += " at " + frame.file + ":" + std::to_string(frame.line) + ": " + event.what;
  if (event.other.pc) {
    const Frame other = kernel_frame(found.back());
    report.text += "; thread " + std::to_string(event.other.thread);
    if (launch.cluster_blocks() > 1) {
      report.text += " of block " + std::to_string(event.other.block) + " of the cluster";
    }
    report.text += " at " + other.file + ":" + std::to_string(other.line);
  }
  if (entry.times > 1) report.text += " (" + std::to_string(entry.times) + " times)";
  return report;
}

}  // namespace

const char* kind_name(Kind kind) {
  constexpr const char* names[] = {"race",
                                   "uninitialized",
                                   "out of bounds",
                                   "use after free",
                                   "host memory",
                                   "misaligned",
                                   "divergent barrier",
                                   "warp collective",
                                   "deadlock",
                                   "asynchronous copy",
                                   "launch",
                                   "ended block",
                                   "trap"};
  return names[static_cast<int>(kind)];
}

void report(const Launch&, const Event& event) {
  std::lock_guard lock(mutex);
  for (Happened& old : happened) {
    if (old.event.kind != event.kind || old.event.pc != event.pc) continue;
    ++old.times;
    return;
  }
  if (happened.size() >= kMost) return;
  const bool in_thread = current.block != nullptr && current.thread != nullptr;
  happened.push_back({event, in_thread ? current.block->index() : uint3{},
                      in_thread ? current.thread->index : uint3{}, in_thread, 1});
}

bool finish_reports(const Launch& launch) {
  std::vector<Happened> entries;
  {
    std::lock_guard lock(mutex);
    entries.swap(happened);
  }
  for (const Happened& entry : entries) {
    Report report = resolved(launch, entry);
    std::lock_guard lock(mutex);
    if (printing) std::fprintf(stderr, "CUDA emulator: %s\n", report.text.c_str());
    if (reports.size() < kMost) reports.push_back(std::move(report));
  }
  return !entries.empty();
}

std::vector<Report> take_reports() {
  std::lock_guard lock(mutex);
  return std::exchange(reports, {});
}

void print_reports(bool print) { printing = print; }

}  // namespace fastdl::emulator
