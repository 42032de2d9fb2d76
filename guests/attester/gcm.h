#ifndef GCM_H
#define GCM_H

#include "guest.h"

/* Encrypts `text` in place and gives the tag over it and `extra`. */
void gcm_seal(const u8 key[32], const u8 iv[12], const u8 *extra, u64 extra_size, u8 *text, u64 size, u8 tag[16]);
/* Decrypts in place. 0: the tag does not fit; `text` is as it was. */
int gcm_open(const u8 key[32], const u8 iv[12], const u8 *extra, u64 extra_size, u8 *text, u64 size, const u8 tag[16]);

#endif
