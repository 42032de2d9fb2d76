/**
 * The frame allocator: a binary buddy system over page frame numbers (as Linux' mm/page_alloc.c), orders 0 (4 KiB) to
 * 18 (1 GiB). It knows numbers alone; contents are host-memory.ts' business. All state lies in typed arrays, every
 * operation is O(orders), and nothing is allocated after construction.
 *
 * Each block, free or allocated, is described at its first frame. Any aligned part of an allocated block may be freed by
 * itself: the block is then cut into allocated buddies until one of them is that part. Left out: zones, migrate types.
 */
export const MAX_ORDER = 18;
/** What `allocate` gives when no block is large enough. */
export const NO_FRAME = -1;

const FREE = 0x80;
const ALLOCATED = 0x40;
const KIND = 0xc0;
const ORDER = 0x3f;

export class BuddyAllocator {
  readonly frameCount: number;
  #freeFrames = 0;
  /** Of a block's first frame: kind and order; 0 for frames inside a block. */
  readonly #state: Uint8Array;
  /** Of an allocated block's first frame. */
  readonly #owner: Uint16Array;
  /** Rings of free blocks, one an order; the ring of order k is headed by the element frameCount + k. */
  readonly #next: Int32Array;
  readonly #previous: Int32Array;
  /** Bit k: the ring of order k is not empty. */
  #available = 0;

  /** Frames 0 to `reserved` − 1 are never handed out. */
  constructor(frameCount: number, reserved: number) {
    this.frameCount = frameCount;
    this.#state = new Uint8Array(frameCount);
    this.#owner = new Uint16Array(frameCount);
    this.#next = new Int32Array(frameCount + MAX_ORDER + 1);
    this.#previous = new Int32Array(frameCount + MAX_ORDER + 1);
    for (let order = 0; order <= MAX_ORDER; order++) {
      this.#next[frameCount + order] = this.#previous[frameCount + order] = frameCount + order;
    }
    for (let frame = reserved; frame < frameCount; ) {
      let order = 0;
      while (order < MAX_ORDER && frame % (2 << order) === 0 && frame + (2 << order) <= frameCount) order++;
      this.#insert(frame, order);
      this.#freeFrames += 1 << order;
      frame += 1 << order;
    }
  }

  get freeFrames(): number {
    return this.#freeFrames;
  }

  /** Bytes that the tables take. */
  get tableBytes(): number {
    return (
      this.#state.byteLength + this.#owner.byteLength + this.#next.byteLength + this.#previous.byteLength
    );
  }

  /** The first frame of a block of 2^`order` frames, aligned to its size, or NO_FRAME. */
  allocate(order: number, owner: number): number {
    const candidates = this.#available & (-1 << order);
    if (candidates === 0) return NO_FRAME;
    let size = 31 - Math.clz32(candidates & -candidates);
    const frame = this.#next[this.frameCount + size]!;
    this.#remove(frame, size);
    while (size > order) {
      size--;
      this.#insert(frame + (1 << size), size);
    }
    this.#state[frame] = ALLOCATED | order;
    this.#owner[frame] = owner;
    this.#freeFrames -= 1 << order;
    return frame;
  }

  /**
   * Frees the 2^`order` frames from `frame` on, which are an allocated block or an aligned part of one. Returns their owner.
   * Throws RangeError, and changes nothing, when they are not.
   */
  free(frame: number, order: number): number {
    const block = this.#allocatedBlockOf(frame, order);
    if (block < 0) {
      throw new RangeError(
        `free of frame ${frame}, order ${order}: not (or no longer) one allocated block's`,
      );
    }
    const owner = this.#owner[block]!;
    for (let part = block, size = this.#state[block]! & ORDER; size > order; ) {
      size--;
      const upper = part + (1 << size);
      this.#state[part] = this.#state[upper] = ALLOCATED | size;
      this.#owner[upper] = owner;
      if (frame >= upper) part = upper;
    }
    this.#freeFrames += 1 << order;
    let start = frame;
    let size = order;
    this.#state[frame] = 0;
    while (size < MAX_ORDER) {
      const buddy = start ^ (1 << size);
      if (buddy >= this.frameCount || this.#state[buddy] !== (FREE | size)) break;
      this.#remove(buddy, size);
      start &= ~(1 << size);
      size++;
    }
    this.#insert(start, size);
    return owner;
  }

  /** Owner of the block that `frame` is allocated in, or −1. */
  ownerOf(frame: number): number {
    const block = this.#allocatedBlockOf(frame, 0);
    return block < 0 ? -1 : this.#owner[block]!;
  }

  /** Number of free blocks of exactly this order. */
  freeBlocks(order: number): number {
    const ring = this.frameCount + order;
    let count = 0;
    for (let frame = this.#next[ring]!; frame !== ring; frame = this.#next[frame]!) count++;
    return count;
  }

  /** First frame of the allocated block that holds the whole of the aligned range, or −1. */
  #allocatedBlockOf(frame: number, order: number): number {
    const fits =
      Number.isInteger(order) && order >= 0 && order <= MAX_ORDER && frame >= 0 && frame < this.frameCount;
    if (!fits || frame % (1 << order) !== 0) return -1;
    for (let size = order; size <= MAX_ORDER; size++) {
      const start = frame & (-1 << size);
      const state = this.#state[start]!;
      if ((state & KIND) === ALLOCATED && (state & ORDER) >= size) return start;
    }
    return -1;
  }

  #insert(frame: number, order: number): void {
    const ring = this.frameCount + order;
    const first = this.#next[ring]!;
    this.#next[frame] = first;
    this.#previous[frame] = ring;
    this.#previous[first] = frame;
    this.#next[ring] = frame;
    this.#state[frame] = FREE | order;
    this.#available |= 1 << order;
  }

  #remove(frame: number, order: number): void {
    const next = this.#next[frame]!;
    const previous = this.#previous[frame]!;
    this.#next[previous] = next;
    this.#previous[next] = previous;
    this.#state[frame] = 0;
    if (next === previous && next === this.frameCount + order) this.#available &= ~(1 << order);
  }
}
