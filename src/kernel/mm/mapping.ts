/**
 * A process's mappings (Linux `vm_area_struct` and its tree, include/linux/mm_types.h, mm/vma.c): which addresses mean what.
 * Left out: merging of neighbours (seen only in the count), growing stacks, protection keys.
 */
import { type Hva, PAGE_SIZE } from '../../base/address.ts';
import type { OpenFile } from '../files.ts';
import type { FileMapping, PageSource } from './page-source.ts';

/** What a mapping does when its file takes pages away; the address space implements it. */
export interface Unmapper {
  beginUnmap(start: Hva, end: Hva): void;
  unmap(start: Hva, end: Hva, options: { cowed: 'keep' | 'drop' }): void;
  endUnmap(start: Hva, end: Hva): void;
}

export interface MappingContent {
  readonly protection: number;
  readonly shared: boolean;
  /** A shared mapping of a file that is open for writing: its pages may be removed. */
  readonly mayWrite: boolean;
  /** The file and its pages; absent for private anonymous memory. */
  readonly backing?: { readonly file: OpenFile; readonly source: PageSource } | undefined;
}

export class Mapping implements FileMapping {
  readonly start: Hva;
  readonly end: Hva;
  readonly content: MappingContent;
  /** Page of the file that `start` shows. */
  readonly firstPage: number;
  readonly endPage: number;
  readonly #unmapper: Unmapper;

  constructor(unmapper: Unmapper, start: Hva, end: Hva, firstPage: number, content: MappingContent) {
    this.#unmapper = unmapper;
    this.start = start;
    this.end = end;
    this.firstPage = firstPage;
    this.endPage = firstPage + (end - start) / PAGE_SIZE;
    this.content = content;
  }

  /** The same mapping, cut down to [start, end). */
  part(start: Hva, end: Hva): Mapping {
    const firstPage = this.pageAt(start);
    return new Mapping(this.#unmapper, start, end, firstPage, this.content);
  }

  /** Page of the file that `address` shows. */
  pageAt(address: number): number {
    return this.firstPage + Math.floor((address - this.start) / PAGE_SIZE);
  }

  /** Takes its references: of the file, and in the file's reverse map. */
  attach(): void {
    this.content.backing?.file.hold();
    this.content.backing?.source.mappings.add(this);
  }

  detach(): void {
    this.content.backing?.source.mappings.remove(this);
    this.content.backing?.file.drop();
  }

  beginUnmap(first: number, end: number): void {
    this.#unmapper.beginUnmap(this.#address(first), this.#address(end));
  }

  unmapPages(first: number, end: number, options: { cowed: 'keep' | 'drop' }): void {
    this.#unmapper.unmap(this.#address(first), this.#address(end), options);
  }

  endUnmap(first: number, end: number): void {
    this.#unmapper.endUnmap(this.#address(first), this.#address(end));
  }

  #address(page: number): Hva {
    return (this.start + (page - this.firstPage) * PAGE_SIZE) as Hva;
  }
}

/** The mappings of an address space, by address; they never overlap. */
export class MappingList {
  readonly #mappings: Mapping[] = [];

  get count(): number {
    return this.#mappings.length;
  }

  all(): readonly Mapping[] {
    return this.#mappings;
  }

  /** The mapping that holds `address`. */
  find(address: number): Mapping | undefined {
    const mapping = this.#mappings[this.#firstEndingAfter(address)];
    return mapping !== undefined && mapping.start <= address ? mapping : undefined;
  }

  /** Mappings that reach into [start, end), in order. */
  overlapping(start: number, end: number): Mapping[] {
    const hit: Mapping[] = [];
    for (let index = this.#firstEndingAfter(start); index < this.#mappings.length; index++) {
      const mapping = this.#mappings[index]!;
      if (mapping.start >= end) break;
      hit.push(mapping);
    }
    return hit;
  }

  /** Adds a mapping to a range that is free. */
  insert(mapping: Mapping): void {
    mapping.attach();
    this.#mappings.splice(this.#firstEndingAfter(mapping.start), 0, mapping);
  }

  /** Frees [start, end), cutting the mappings that reach out of it. */
  remove(start: Hva, end: Hva): void {
    const index = this.#firstEndingAfter(start);
    const hit = this.overlapping(start, end);
    const rest: Mapping[] = [];
    for (const mapping of hit) {
      if (mapping.start < start) rest.push(mapping.part(mapping.start, start));
      if (mapping.end > end) rest.push(mapping.part(end, mapping.end));
    }
    for (const mapping of rest) mapping.attach();
    this.#mappings.splice(index, hit.length, ...rest);
    for (const mapping of hit) mapping.detach();
  }

  /** The highest free range of `length` bytes in [floor, ceiling) whose start is a multiple of `alignment`, or undefined. */
  findGap(length: number, alignment: number, floor: number, ceiling: number): Hva | undefined {
    let end = ceiling;
    for (let index = this.#mappings.length - 1; index >= -1; index--) {
      const below = index < 0 ? floor : Math.max(floor, this.#mappings[index]!.end);
      const start = end - length - ((((end - length) % alignment) + alignment) % alignment);
      if (start >= below) return start as Hva;
      if (index >= 0) end = Math.min(end, this.#mappings[index]!.start);
    }
    return undefined;
  }

  #firstEndingAfter(address: number): number {
    let low = 0;
    let high = this.#mappings.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#mappings[middle]!.end > address) high = middle;
      else low = middle + 1;
    }
    return low;
  }
}
