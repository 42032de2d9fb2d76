/**
 * Who holds host memory: each frame in use is accounted to an owner (a process's address space, a guest_memfd, a VM's
 * nested tables, a core), so that a leak has a name. Left out: limits per owner (Linux' memory cgroups).
 */
export class FrameOwner {
  readonly name: string;
  /** The number that the frame allocator keeps with a block. */
  readonly id: number;
  /** Frames in use now. */
  frames = 0;

  constructor(name: string, id: number) {
    this.name = name;
    this.id = id;
  }
}

/** The owners of one host, by name and by number. */
export class FrameOwners {
  readonly #byName = new Map<string, FrameOwner>();
  readonly #byId: FrameOwner[] = [];

  /** The owner of that name; it comes to be when first asked for. Throws RangeError beyond 65536 names. */
  get(name: string): FrameOwner {
    let owner = this.#byName.get(name);
    if (owner === undefined) {
      if (this.#byId.length > 0xffff)
        throw new RangeError(`no room for frame owner ${name}: 65536 names in use`);
      owner = new FrameOwner(name, this.#byId.length);
      this.#byId.push(owner);
      this.#byName.set(name, owner);
    }
    return owner;
  }

  byId(id: number): FrameOwner {
    return this.#byId[id]!;
  }

  /** Owners that hold frames now. */
  holding(): FrameOwner[] {
    return this.#byId.filter((owner) => owner.frames > 0);
  }
}
