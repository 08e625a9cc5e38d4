// The simulated npu: a device on torch's PrivateUse1 key whose memory and processor are the host's. One file for the
// compiler, which would read torch's headers anew, and longer than anything here, for each further one.
#include "autocast.h"
#include "copies.h"
#include "creation.h"
#include "device.h"
#include "memory.h"
#include "operators.h"
#include "streams.h"
#include "tensors.h"
#include "timers.h"
