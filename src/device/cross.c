#include "device/device.h"

static ferry_status transfer(fe_far *far, const fe_transfer *t) {
    if (t->bytes && t->get) FE_TRY(fe_far_get(far, t->far_rank, t->far_at, t->to, t->bytes));
    if (t->bytes && !t->get) FE_TRY(fe_far_put(far, t->far_rank, t->far_at, t->from, t->bytes));
    if (t->owner < 0) return FERRY_OK;
    return fe_far_word(far, t->owner, t->op == FERRY_SIGNAL_SET ? FE_SET : FE_ADD, t->signal_at, t->value, 0, NULL);
}

ferry_status fe_device_cross(fe_far *far, const fe_pass *pass) {
    const fe_atomic *a = &pass->atomic;
    if (pass->move == FE_MOVE_TRANSFER) return transfer(far, &pass->transfer);
    return fe_far_word(far, a->owner, a->swap ? FE_SWAP : FE_ADD, a->at, a->swap ? a->desired : a->add, a->expected,
                       a->old);
}
