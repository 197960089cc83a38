package moenn

// #include "bridge.h"
import "C"

import (
	"context"
	"runtime/cgo"
)

// calling is a call under way that calls back. While Go runs, the call gives its turn on the device
// to whoever waits, as the library does.
type calling struct {
	ctx      context.Context
	place    *place
	turn     *turn // nil while Go runs
	token    func(token int32, index int64) bool
	progress func(done, total int64) error
	err      error // why the callback stopped the call
	panicked any
}

// run makes the call f, which hands user to the callbacks.
func (c *calling) run(f func(user C.uintptr_t) C.nn_status_t) error {
	turn, err := c.place.take(c.ctx)
	if err != nil {
		return err
	}
	c.turn = turn
	user := cgo.NewHandle(c)
	defer func() {
		user.Delete()
		if c.turn != nil {
			c.turn.give()
		}
	}()
	err = call(func() C.nn_status_t { return f(C.uintptr_t(user)) })
	if c.panicked != nil {
		panic(c.panicked)
	}
	if c.err != nil {
		return c.err
	}
	return explain(c.ctx, err)
}

// back runs f between two turns, and says whether the call is to stop. A panic must not unwind C:
// it goes on in run.
func (c *calling) back(f func() bool) (stop C.int32_t) {
	c.turn.give()
	c.turn = nil
	finished := false
	defer func() {
		if !finished {
			c.panicked = recover()
			stop = 1
		}
	}()
	stop = toInt32(f())
	finished = true
	if stop == 0 {
		c.turn, c.err = c.place.take(c.ctx)
		stop = toInt32(c.err != nil)
	}
	return stop
}

//export moennToken
func moennToken(token C.int32_t, index C.int64_t, user C.uintptr_t) C.int32_t {
	c := cgo.Handle(user).Value().(*calling)
	return c.back(func() bool { return c.token != nil && !c.token(int32(token), int64(index)) })
}

//export moennProgress
func moennProgress(done, total C.int64_t, user C.uintptr_t) C.int32_t {
	c := cgo.Handle(user).Value().(*calling)
	return c.back(func() bool {
		if c.progress == nil {
			return false
		}
		err := c.progress(int64(done), int64(total))
		if err != nil {
			c.err = cancelled(err)
		}
		return err != nil
	})
}

//export moennLog
func moennLog(level C.int32_t, message *C.char, user C.uintptr_t) {
	hear(cgo.Handle(user), LogLevel(level), C.GoString(message))
}

func hear(log cgo.Handle, level LogLevel, message string) {
	log.Value().(func(LogLevel, string))(level, message)
}
