# METADATA
# scope: package
# title: Does this engine work as every engine has to?
# description: |
#   Asked when a bundle is loaded, never about work: one line for each built-in of the portable profile, over inputs that
#   `comity_policies/probe.json` holds with the answers. An engine that lacks a built-in, or answers otherwise, is refused
#   before it decides anything. The same module is the conformance corpus of `tests/contract/policies`.
package comity.probe

# METADATA
# scope: document
# title: Every built-in's answers
# entrypoint: true
default result := {}

result := {
	"abs": [abs(n) | some n in input.whole_numbers],
	"round": [round(quarter(n)) | some n in input.whole_numbers],
	"count": [count(x) | some x in input.collections],
	"sum": [sum(x) | some x in input.number_lists],
	"product": [product(x) | some x in input.number_lists],
	"max": [max(x) | some x in input.number_lists],
	"min": [min(x) | some x in input.number_lists],
	"sort": [sort(x) | some x in input.collections],
	"trim_space": [trim_space(x) | some x in input.texts],
	"to_number": [to_number(x) | some x in input.number_texts],
	"type_name": [type_name(x) | some x in input.values],
	"is_array": [x | some x in input.values; is_array(x)],
	"is_boolean": [x | some x in input.values; is_boolean(x)],
	"is_null": [x | some x in input.values; is_null(x)],
	"is_number": [x | some x in input.values; is_number(x)],
	"is_object": [x | some x in input.values; is_object(x)],
	"is_set": [x | some x in [{1}, 2]; is_set(x)],
	"is_string": [x | some x in input.values; is_string(x)],
	"intersection": intersection({{1, 2, 3}, {2, 3, 4}}),
	"union": union({{1, 2}, {2, 3}}),
	"object.keys": [object.keys(x) | some x in input.objects],
	"array.reverse": [array.reverse(x) | some x in input.arrays],
	"time.parse_rfc3339_ns": [time.parse_rfc3339_ns(x) | some x in input.instants],
	"concat": [concat("-", x) | some x in input.text_lists],
	"contains": [x | some x in input.pairs; contains(x[0], x[1])],
	"endswith": [x | some x in input.pairs; endswith(x[0], x[1])],
	"startswith": [x | some x in input.pairs; startswith(x[0], x[1])],
	"split": [split(x[0], x[1]) | some x in input.pairs],
	"sprintf": {
		"s": [sprintf("%s", [x]) | some x in input.texts],
		"whole": [sprintf("%v", [x]) | some x in input.whole_numbers],
		"v": [sprintf("%v", [x]) | some x in input.values],
		"all": [sprintf("%s has %v of %v%%", [x[0], x[1], x[2]]) | some x in input.formats],
	},
	"trim": [trim(x[0], x[1]) | some x in input.pairs],
	"trim_left": [trim_left(x[0], x[1]) | some x in input.pairs],
	"trim_prefix": [trim_prefix(x[0], x[1]) | some x in input.pairs],
	"trim_right": [trim_right(x[0], x[1]) | some x in input.pairs],
	"trim_suffix": [trim_suffix(x[0], x[1]) | some x in input.pairs],
	"numbers.range": [numbers.range(x[0], x[1]) | some x in input.ranges],
	"array.concat": [array.concat(x[0], x[1]) | some x in input.array_pairs],
	"object.union": [object.union(x[0], x[1]) | some x in input.object_pairs],
	"object.remove": [object.remove(x[0], x[1]) | some x in input.object_keys],
	"object.filter": [object.filter(x[0], x[1]) | some x in input.object_keys],
	"array.slice": [array.slice(x[0], x[1], x[2]) | some x in input.slices],
	"object.get": [object.get(x[0], x[1], x[2]) | some x in input.gets],
	"replace": [replace(x[0], x[1], x[2]) | some x in input.replaces],
	"substring": [substring(x[0], x[1], x[2]) | some x in input.substrings],
	"language": {
		"sets": [{1, 2, 3} & {2, 3}, {1} | {2}, {1, 2} - {1}],
		"order": [x | some x in input.values; x > 1],
		"member": [x | some x in input.values; x in [1, "x", null]],
		"quarter": [quarter(n) | some n in input.whole_numbers],
		"remainder": [remainder(n) | some n in input.whole_numbers],
		"grade": [grade(n) | some n in input.whole_numbers],
		"fallback": [fallback(n) | some n in input.whole_numbers],
		"keys": [key | some each in input.objects; some key, _ in each],
		"doubled": {key: doubled | some key, n in input.objects[1]; doubled := n * 2},
		"positive": [x | some x in input.number_lists; positive(x)],
		"absent": [x | some x in input.objects; not x.a],
	},
}

quarter(n) := n / 4

remainder(n) := n % 3

grade(n) := "large" if {
	n > 100
} else := "small" if {
	n > 0
} else := "none"

default fallback(_) := "other"

fallback(n) := "one" if n == 1

positive(numbers) if {
	every n in numbers {
		n > 0
	}
}
