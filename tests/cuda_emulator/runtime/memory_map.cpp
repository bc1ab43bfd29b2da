#include "memory_map.h"

#include <link.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <map>

namespace fastdl::emulator {
namespace {

struct Query {
  uintptr_t address;
  bool constant = false;
  std::string file;
  uintptr_t base = 0;
};

int visit(dl_phdr_info* module, size_t, void* data) {
  Query& query = *static_cast<Query*>(data);
  bool inside = false, constant = false;
  for (int i = 0; i < module->dlpi_phnum; ++i) {
    const auto& header = module->dlpi_phdr[i];
    if (query.address - (module->dlpi_addr + header.p_vaddr) >= header.p_memsz) continue;
    inside |= header.p_type == PT_LOAD;
    constant |= header.p_type == PT_GNU_RELRO;
    constant |= header.p_type == PT_LOAD && !(header.p_flags & PF_W);
  }
  if (!inside) return 0;
  query.constant = constant;
  query.file = module->dlpi_name;
  query.base = module->dlpi_addr;
  return 1;
}

std::string program() {
  char path[4096];
  const ssize_t length = readlink("/proc/self/exe", path, sizeof(path));
  return length > 0 ? std::string(path, static_cast<size_t>(length)) : "";
}

std::string quoted(const std::string& text) {
  std::string shell = "'";
  for (const char c : text) shell += c == '\'' ? "'\\''" : std::string(1, c);
  return shell + "'";
}

std::string read_line(FILE* pipe) {
  std::string line;
  for (int c; (c = std::fgetc(pipe)) != EOF && c != '\n';) line += static_cast<char>(c);
  return line;
}

}  // namespace

bool is_constant(uintptr_t address) {
  Query query;
  query.address = address;
  dl_iterate_phdr(visit, &query);
  return query.constant;
}

std::vector<std::vector<Frame>> find_sources(const std::vector<const void*>& addresses) {
  static std::map<const void*, std::vector<Frame>> known;  // looking up takes a process each
  std::map<std::string, std::vector<std::pair<const void*, uintptr_t>>> unknown;
  for (const void* address : addresses) {
    if (known.contains(address)) continue;
    Query query;
    query.address = reinterpret_cast<uintptr_t>(address);
    dl_iterate_phdr(visit, &query);
    unknown[query.file].emplace_back(address, query.address - query.base);
    known[address];
  }
  for (const auto& [file, places] : unknown) {
    std::string command = "addr2line -a -f -C -i -e " + quoted(file.empty() ? program() : file);
    for (const auto& [address, offset] : places) {
      char text[24];
      std::snprintf(text, sizeof(text), " 0x%zx", static_cast<size_t>(offset));
      command += text;
    }
    FILE* pipe = popen((command + " 2>/dev/null").c_str(), "r");
    if (!pipe) continue;
    int place = -1;
    for (std::string line; !(line = read_line(pipe)).empty();) {
      if (line.starts_with("0x")) {
        ++place;
        continue;
      }
      Frame frame{line, read_line(pipe)};
      if (const size_t note = frame.file.find(" (discriminator"); note != std::string::npos) {
        frame.file.resize(note);
      }
      if (const size_t colon = frame.file.rfind(':'); colon != std::string::npos) {
        frame.line = std::atoi(frame.file.c_str() + colon + 1);
        frame.file.resize(colon);
      }
      if (place >= 0) known[places[static_cast<size_t>(place)].first].push_back(frame);
    }
    pclose(pipe);
  }
  std::vector<std::vector<Frame>> found;
  for (const void* address : addresses) found.push_back(known[address]);
  return found;
}

}  // namespace fastdl::emulator
