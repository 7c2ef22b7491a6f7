// What the trainer says: JSON lines on standard output, one event a line, the last says how it ended.
#pragma once

#include "front.h"
#include "json.h"

namespace tinytl {

// One event at a time: events.begin("step").integer("step", 10).number("loss", 0.5); events.send();
class Events {
 public:
  // Room for a line is taken at once, so that the training loop does not allocate.
  explicit Events(int descriptor = 1);

  // From now on what is said goes to the front, where there is one.
  void lead(Front* front) { front_ = front; }
  // Called again and again between two events.
  void tick() {
    if (front_) front_->tick();
  }

  // Starts an event; its other members are written with what this returns.
  json::Writer& begin(const char* event);

  // Writes the event as one line with a single write(2), unless the system takes less at once. False: whoever
  // listened is gone, or the disk behind standard output is full; main must ignore SIGPIPE to see it.
  bool send();

 private:
  json::Writer writer_;
  Front* front_ = nullptr;
  const char* kind_ = "";
  int descriptor_;
};

}  // namespace tinytl
