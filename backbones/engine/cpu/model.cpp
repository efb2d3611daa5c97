// Reading tokens with a whole model in one call, and drawing more of them, for Python's ctypes (`library.py`). What a
// model is made of comes as an array of pointers: sizes, outer matrices, layers, then what else the model has and where
// the state is. Calls return a number of `Wrong`.

#include "bimamba.h"
#include "burst.h"
#include "decoder.h"
#include "hymba.h"

template <class T>
static const T& as(const void* part) {
    return *static_cast<const T*>(part);
}

extern "C" {

i64 nlrl_lanes() { return LANES; }

i64 nlrl_decoder_step(const void* const* parts, const Call* call) {
    return decoder_step(as<Sizes>(parts[0]), as<Outer>(parts[1]), &as<DecoderLayer>(parts[2]), as<Cache>(parts[3]),
                        *call);
}

i64 nlrl_bimamba_step(const void* const* parts, const Call* call) {
    return bimamba_step(as<Sizes>(parts[0]), as<Outer>(parts[1]), &as<MixerLayer>(parts[2]), as<Part>(parts[3]),
                        as<Part>(parts[4]), as<i64>(parts[5]), *call);
}

i64 nlrl_hymba_step(const void* const* parts, const Call* call) {
    return hymba_step(as<Sizes>(parts[0]), as<Outer>(parts[1]), &as<HymbaLayer>(parts[2]), &as<HymbaPlace>(parts[3]),
                      as<HymbaState>(parts[4]), *call);
}

void nlrl_sample(const Draw* draw) { sample(*draw); }

i64 nlrl_burst(Step step, const void* const* parts, const Burst* rows) { return burst(step, parts, *rows); }
}
