/* Which network devices of a host a rank uses. */
#ifndef FERRY_LINK_RAILS_H
#define FERRY_LINK_RAILS_H

#define FE_RAILS 4 /* of a rank at most: its share of a host's, and few hosts have more devices than ranks */

/* `devices` of a host in the order that the network names them, for the rank that is the index'th of `each` on the host: chosen[] gets the numbers of
 * those it uses, and how many is returned. wanted 0: its share, so that together they use all, and each is used by as few as can be. */
static inline int fe_rails_share(int devices, int index, int each, int wanted, int chosen[FE_RAILS]) {
    int first = (int)((long long)index * devices / each), next = (int)((long long)(index + 1) * devices / each);
    int count = wanted ? wanted : next - first;
    if (count < 1) count = 1;
    if (count > FE_RAILS) count = FE_RAILS;
    if (count > devices) count = devices;
    for (int i = 0; i < count; i++) chosen[i] = (first + i) % devices;
    return count;
}

#endif
