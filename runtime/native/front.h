// The trainer as the command line: where `tinytl-edge` became this process, nobody waits beside it, and what a person
// sees, events.jsonl and run.json are written here.
#pragma once

#include <memory>

#include "job.h"
#include "json.h"

namespace tinytl {

class Front {
 public:
  virtual ~Front() = default;

  // Takes an event whose object is still open, adds what it knows, and passes it on. False: whoever reads standard
  // output is gone.
  virtual bool hear(const char* kind, json::Writer& event) = 0;
  // Called again and again between two events.
  virtual void tick() {}
  // Says how it failed; returns the exit code.
  virtual int failed(int exit_code, const char* message);
};

// The front of a job that has one, or null.
std::unique_ptr<Front> front_of(const Job& job);

// Writes on standard output. False: whoever reads it is gone. Fails where it is full.
bool print(const std::string& text);

}  // namespace tinytl
